"""Products with the tensors of an AWQ checkpoint as they are, on an NVIDIA GPU.

Nothing is repacked and there is no second copy. Not run on a GPU so far; proven as `cuda` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import AlignmentError, DeviceError, FormatError
from awqbench.formats.layouts.packing import unpack_awq_columns
from awqbench.gemm import cuda
from awqbench.gemm.cuda_build import Program
from awqbench.gemm.cuda_layout import GROUP_MULTIPLE, TileSpec

if TYPE_CHECKING:
    import torch

# From here on decoding the weight once is expected to win: a block serves 8 tokens, and every
# block reads and decodes its weights again.
DENSE_FROM = 33
_WARPS, _COLUMNS, _TOKENS, _ROWS = 8, 128, 8, 8
_MAX_SPLITS = 8


class AwqWeight(NamedTuple):
    """The tensors of a linear in an AWQ GEMM checkpoint, on one device.

    `qweight` (K, N/8) int32, `qzeros` (G, N/8) int32, `scales` (G, N) float16.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K."""
        return self.scales.shape[1], self.qweight.shape[0]

    @property
    def group_size(self) -> int:
        """Input channels of a group, 0 where that is the whole row."""
        n_groups, in_features = self.qzeros.shape[0], self.qweight.shape[0]
        return 0 if n_groups == 1 else in_features // n_groups


def check_weight(weight: AwqWeight) -> None:
    """Check shapes, dtypes, strides, groups and devices.

    Raises
    ------
    FormatError
        If shapes or dtypes are not those of the layout, or a tensor is not contiguous or begins
        at an address that is no multiple of 16.
    AlignmentError
        If K is not a multiple of 8, or the group size not of 32.
    DeviceError
        If the tensors lie on different devices.
    """
    (out_features, in_features), n_groups = weight.sizes, weight.scales.shape[0]
    expected = ((in_features, out_features // 8), (n_groups, out_features // 8))
    found = (tuple(weight.qweight.shape), tuple(weight.qzeros.shape))
    dtypes = [str(part.dtype).removeprefix("torch.") for part in weight]
    if found != expected or out_features % 8 or dtypes != ["int32", "int32", "float16"]:
        raise FormatError(
            f"an AWQ weight with scales {tuple(weight.scales.shape)} needs qweight {expected[0]} "
            f"and qzeros {expected[1]}, int32, int32 and float16; found {found[0]} and "
            f"{found[1]}, {', '.join(dtypes)}."
        )
    if not all(part.is_contiguous() for part in weight):
        raise FormatError("qweight, qzeros or scales is a view with strides; call .contiguous().")
    if any(part.data_ptr() % cuda.ALIGNMENT for part in weight):
        raise FormatError(
            "qweight, qzeros or scales is a view that begins at an address that is no multiple of "
            f"{cuda.ALIGNMENT}; call .clone()."
        )
    uneven = in_features % n_groups or weight.group_size % GROUP_MULTIPLE
    if uneven or in_features % 8:
        raise AlignmentError(
            f"{n_groups} groups of {in_features} input channels: the kernels take whole groups "
            f"of a multiple of {GROUP_MULTIPLE}, and channels in eights; choose backend='torch'."
        )
    if len({part.device for part in weight}) > 1:
        raise DeviceError(
            f"qweight, qzeros and scales are on {', '.join(str(part.device) for part in weight)}; "
            "move them to one device."
        )


def matmul(x: torch.Tensor, weight: AwqWeight) -> torch.Tensor:
    """Multiply tokens by a checkpoint's tensors.

    Parameters
    ----------
    x : (M, K) torch.Tensor of float16 or bfloat16
    weight : AwqWeight
        On the device of x; contiguous.

    Returns
    -------
    (M, N) torch.Tensor

    Raises
    ------
    AlignmentError, DeviceError, FormatError, ParameterError
        As `check_weight`, and if x does not end in K, lies elsewhere or is float32.
    """
    import torch

    check_weight(weight)
    out_features, in_features = weight.sizes
    if x.device != weight.qweight.device:
        raise DeviceError(f"x is on {x.device}, the weight on {weight.qweight.device}.")
    if x.shape[1] != in_features:
        raise AlignmentError(f"x has shape {tuple(x.shape)}, the weight {in_features} channels.")
    x = cuda.align_tokens(x)
    y = x.new_empty(len(x), out_features)
    if not y.numel():
        return y
    if len(x) >= DENSE_FROM:
        return x @ dequantize(weight, x.dtype)
    program, grid = direct(len(x), weight, cuda.device_facts(x.device).n_sm, x.dtype)
    partial = None
    if grid[1] > 1:
        partial = torch.empty((grid[1], *y.shape), dtype=torch.float32, device=y.device)
    args = (x, *weight, y, partial, len(x), out_features, in_features)
    cuda.launch(program, grid, (32 * _WARPS, 1, 1), *args)
    if partial is not None:
        cuda.add_splits(partial, y)
    return y


def direct(
    tokens: int, weight: AwqWeight, n_sm: int, dtype: torch.dtype
) -> tuple[Program, tuple[int, int, int]]:
    """Return w4a16_direct's program and grid; K is split until blocks fill the GPU."""
    out_features, in_features = weight.sizes
    columns, rows = -(-out_features // _COLUMNS), -(-tokens // _TOKENS)
    n_units = -(-in_features // min(weight.group_size or 128, 128))
    splits = min(-(-2 * n_sm // (columns * rows)), -(-n_units // _WARPS), _MAX_SPLITS)
    program = Program.of(
        "w4a16_direct",
        BF16=int(str(dtype) == "torch.bfloat16"),
        GROUP=weight.group_size,
        WARPS=_WARPS,
        WIDE=int(out_features % 16 == 0),
    )
    return program, (columns, splits, rows)


def dequantize(weight: AwqWeight, dtype: torch.dtype) -> torch.Tensor:
    """Decode to (K, N), rounded once to `dtype`: for float16 what AutoAWQ decodes."""
    out_features, in_features = weight.sizes
    dense = weight.qweight.new_empty((in_features, out_features), dtype=dtype)
    program = Program.of(
        "w4_dequant",
        BF16=int(str(dtype) == "torch.bfloat16"),
        GROUP=weight.group_size,
        ROWS=_ROWS,
    )
    grid = (-(-out_features // 256), -(-in_features // (8 * _ROWS)))
    cuda.launch(program, grid, (32, 8), *weight, dense, out_features, in_features)
    return dense


def to_tiles(weight: AwqWeight) -> cuda.CudaWeight:
    """Repack a checkpoint's tensors into tiles, on their device.

    Raises
    ------
    AlignmentError, DeviceError, FormatError
        As `check_weight`.
    """
    import torch

    check_weight(weight)
    spec = TileSpec(*weight.sizes, 4, weight.group_size, "float16")
    device = weight.qweight.device
    codes = torch.empty(spec.codes_shape, dtype=torch.int32, device=device)
    program, n_blocks = Program.of("w4_repack", AWQ=1, BITS=4), -(-codes.numel() // 256)
    cuda.launch(program, (n_blocks,), (256,), weight.qweight, codes, *weight.sizes)
    zeros = unpack_awq_columns(weight.qzeros.cpu().numpy())
    scales = weight.scales.cpu().numpy().T
    made = cuda.CudaWeight(
        spec,
        codes,
        cuda.tensor_of(scales, spec, device),
        cuda.tensor_of(zeros, spec, device),
        None,
    )
    cuda.finish(device)
    return made
