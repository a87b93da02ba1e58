"""y = x Wᵀ on an NVIDIA GPU, by the kernels of kernels/*.cu. Not run on a GPU so far.

What stands here is proven without one: every program compiles for every architecture, and an
interpreter of its PTX gives the right product through these very functions (tests/ptx).

Memory is torch's: tokens, weights, results and workspaces are tensors, of which a kernel gets
the addresses, and it runs on the stream that is current in torch at the call. So nothing is
copied, and calls can be captured in a CUDA graph, once a first call has loaded the kernel.

CuPy loads cubins and launches kernels, and is imported here alone, at the first launch.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awqbench.errors import AlignmentError, BackendError, DeviceError, ParameterError
from awqbench.gemm import cuda_build, cuda_choice, cuda_driver, cuda_layout, cuda_nvrtc
from awqbench.gemm.cuda_build import Program
from awqbench.gemm.cuda_choice import Launch
from awqbench.gemm.cuda_layout import TileSpec
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

# A load of 16 bytes takes 8 values, and asks for an address that is a multiple of 16.
ALIGNMENT = 16
_VALUES = 8


class Facts(NamedTuple):
    """What a GPU is: its architecture ("90a"), multiprocessors and name."""

    arch: str
    n_sm: int
    name: str


class CudaWeight(NamedTuple):
    """A weight in tiles, as tensors on one device: see `cuda_layout.TiledArrays`.

    `codes` int32, `zeros` uint8; `order` int64 or None.
    """

    spec: TileSpec
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor | None


class _Stream(NamedTuple):
    """What CuPy reads of a stream."""

    ptr: int


@cache
def why_absent() -> str:
    """Say why the backend cannot be used on this machine, or ""; wakes no device."""
    if reason := cuda_driver.why_absent():
        return reason
    if find_spec("cupy") is None:
        return "CuPy is not installed; pip install 'awqbench[cuda]'."
    return cuda_nvrtc.why_absent() or cuda_driver.why_too_old(cuda_nvrtc.version())


def takes(x: torch.Tensor) -> bool:
    """Return whether tokens can be multiplied here without losing digits or a gradient."""
    import torch

    if x.device.type != "cuda" or (x.requires_grad and torch.is_grad_enabled()):
        return False
    try:
        device_facts(x.device)
    except BackendError:  # too old a GPU
        return False
    return not _why_not_tokens(x)


def _why_not_tokens(x: torch.Tensor) -> str:
    import torch

    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"x is {x.dtype}; it multiplies float16 and bfloat16"
    if x.dtype == torch.bfloat16 and device_facts(x.device).arch == "75":
        return f"{device_facts(x.device).name} has no bfloat16; use x.half()"
    return ""


def check_tokens(x: torch.Tensor) -> None:
    """Check that x lies on a GPU and has a dtype that the kernels multiply.

    Raises
    ------
    DeviceError
        If it lies on the CPU.
    ParameterError
        If it is neither float16 nor bfloat16, or the GPU has no bfloat16.
    BackendError
        If the GPU is too old for the kernels.
    """
    if x.device.type != "cuda":
        raise DeviceError(
            f"x is on {x.device}, and backend 'cuda' computes on a GPU; move x with .cuda(), or "
            "choose backend='native'."
        )
    if reason := _why_not_tokens(x):
        raise ParameterError(f"backend 'cuda': {reason}, or choose backend='torch'.")


def to_device(packed: PackedWeight, device: torch.device) -> CudaWeight:
    """Lay out a weight on a GPU; its codes go there as bytes and are repacked there.

    Raises
    ------
    AlignmentError
        If its groups do not fit tiles.
    """
    import torch

    if reason := cuda_layout.why_not(packed):
        raise AlignmentError(
            f"{packed.name or 'the weight'} cannot be laid out for backend 'cuda': {reason}; "
            "choose backend='torch'."
        )
    spec, order = cuda_layout.spec_of(packed), cuda_layout.order_of(packed)
    codes = packed.codes if packed.codes.flags.writeable else packed.codes.copy()  # torch warns
    source = torch.from_numpy(codes).to(device)
    if order is not None:
        order = torch.from_numpy(order).to(device)
        source = source.index_select(1, order)
    codes = torch.empty(spec.codes_shape, dtype=torch.int32, device=device)
    program = Program.of("w4_repack", BITS=spec.bits, AWQ=0)
    n_blocks = -(-codes.numel() // 256)
    launch(program, (n_blocks,), (256,), source.contiguous(), codes, *_sizes(spec))
    scales = tensor_of(cuda_layout.store_scales(packed.scales, spec.scale_type), spec, codes.device)
    made = CudaWeight(spec, codes, scales, tensor_of(packed.zeros, spec, codes.device), order)
    finish(codes.device)
    return made


def finish(device: torch.device) -> None:
    """Wait for the current stream: the caller may multiply by what it made on another one."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def tensor_of(values: np.ndarray, spec: TileSpec, device: torch.device) -> torch.Tensor:
    """Return scales, as they are stored, or zero points, (N, G), in tiles on a device."""
    import torch

    values = cuda_layout.pack_meta(values, spec)
    if values.dtype == np.uint16:  # bfloat16, which NumPy has not
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(values).to(device)


def _sizes(spec: TileSpec) -> tuple[int, int]:
    return spec.out_features, spec.in_features


def matmul(x: torch.Tensor, weight: CudaWeight) -> torch.Tensor:
    """Multiply tokens by a weight in tiles.

    Up to 32 tokens nothing is rounded but x and y: differences from the zero point are exact
    and products are summed in float32. For more, or where decoding first was measured to be
    faster, weights are rounded to the dtype of x; float16 weights of an AWQ checkpoint are then
    what AutoAWQ decodes, bit for bit.

    Parameters
    ----------
    x : (M, K) torch.Tensor of float16 or bfloat16
    weight : CudaWeight
        On the device of x.

    Returns
    -------
    (M, N) torch.Tensor
        Dtype and device of x.

    Raises
    ------
    DeviceError
        If x and the weight lie on different devices; names both.
    AlignmentError
        If x is not (M, K).
    ParameterError
        As `align_tokens`.
    """
    import torch

    if x.device != weight.codes.device:
        raise DeviceError(
            f"x is on {x.device}, the weight on {weight.codes.device}; move one with .to(...)."
        )
    if x.ndim != 2 or x.shape[1] != weight.spec.in_features:
        raise AlignmentError(
            f"x has shape {tuple(x.shape)}, and the weight takes (M, {weight.spec.in_features})."
        )
    x = align_tokens(x, weight.order)
    y = x.new_empty(len(x), weight.spec.out_features)
    if not y.numel():
        return y
    chosen = choose(len(x), weight, x.dtype)
    if chosen is None:
        return torch.nn.functional.linear(x, dequantize(weight, x.dtype))
    multiply(x, weight, chosen, y)
    return y


def choose(tokens: int, weight: CudaWeight, dtype: torch.dtype) -> Launch | None:
    """Return the launch for so many tokens, None for decoding: as measured, or by the rules."""
    facts = device_facts(weight.codes.device)
    is_bf16 = str(dtype) == "torch.bfloat16"
    settings = {"arch": facts.arch, "n_sm": facts.n_sm, "is_bf16": is_bf16}
    if known := cuda_choice.measured():
        key = cuda_choice.key_of(facts.name, tokens, weight.spec, is_bf16=is_bf16)
        best = known.get(key, "")
        if best == cuda_choice.DENSE:
            return None
        if best and (found := cuda_choice.named(best, tokens, weight.spec, **settings)):
            return found
    return cuda_choice.choose(tokens, weight.spec, **settings)


def multiply(x: torch.Tensor, weight: CudaWeight, chosen: Launch, y: torch.Tensor) -> None:
    """Multiply aligned tokens by a chosen kernel into y (M, N)."""
    import torch

    sizes = (len(x), weight.spec.out_features, x.shape[1])
    tiles = (weight.codes, weight.scales, weight.zeros)
    if chosen.program.kernel == "w4a16_skinny":
        launch(chosen.program, chosen.grid, chosen.block, x, *tiles, y, *sizes)
        return
    partial = None
    if chosen.splits > 1:
        partial = torch.empty((chosen.splits, *y.shape), dtype=torch.float32, device=y.device)
    launch(chosen.program, chosen.grid, chosen.block, x, *tiles, y, partial, *sizes)
    if partial is not None:
        add_splits(partial, y)


def add_splits(partial: torch.Tensor, y: torch.Tensor) -> None:
    """Add up (splits, M, N) float32 partial sums into y (M, N)."""
    program = Program.of("sum_splits", BF16=int(str(y.dtype) == "torch.bfloat16"))
    n_blocks = -(-y.numel() // 256)
    launch(program, (n_blocks,), (256,), partial, y, len(partial), y.numel())


def dequantize(weight: CudaWeight, dtype: torch.dtype) -> torch.Tensor:
    """Decode a weight, rounded once to `dtype`, float16 or bfloat16.

    Returns
    -------
    (N, K) torch.Tensor
        K padded with zero columns to a multiple of 8; channels in the order of the tiles.
    """
    spec = weight.spec
    width = -(-spec.in_features // _VALUES) * _VALUES
    dense = weight.codes.new_empty((spec.out_features, width), dtype=dtype)
    macros = cuda_choice.weight_macros(spec, is_bf16=str(dtype) == "torch.bfloat16")
    grid = (spec.k_tiles, -(-spec.n_tiles // 8))
    tiles = (weight.codes, weight.scales, weight.zeros)
    launch(Program.of("tile_dequant", **macros), grid, (32, 8), *tiles, dense, *dense.shape)
    return dense


def align_tokens(x: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """Return tokens in `order`, side by side, with K padded to 8 and an aligned address.

    Raises
    ------
    ParameterError
        If x is neither float16 nor bfloat16.
    """
    import torch

    if reason := _why_not_tokens(x):
        raise ParameterError(f"backend 'cuda': {reason}, or choose backend='torch'.")
    x = x.detach()
    if order is not None:
        x = x.index_select(1, order)
    if missing := -x.shape[1] % _VALUES:
        x = torch.nn.functional.pad(x, (0, missing))
    x = x.contiguous()
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


def launch(program: Program, grid: tuple[int, ...], block: tuple[int, ...], *args: Any) -> None:
    """Run a program on the device of its first argument, on torch's current stream there.

    Parameters
    ----------
    program : Program
    grid, block : tuple of int
        One to three sizes.
    *args
        Tensors, or None for a null pointer; int for a 32-bit integer.
    """
    import cupy
    import torch

    device = args[0].device
    # Both libraries keep a current device, and a kernel runs in that of CuPy's.
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        kernel = _kernel(program, device_facts(device).arch, device.index)
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        kernel(grid, block, tuple(_argument(value) for value in args), stream=stream)


def _argument(value: torch.Tensor | int | None) -> np.generic:
    if isinstance(value, int):
        return np.int32(value)
    return np.uint64(0 if value is None else value.data_ptr())


@cache
def _kernel(program: Program, arch: str, device_index: int) -> Any:
    """Return a program's function, loaded for the current device, which is `device_index`."""
    import cupy

    file = cuda_build.cubin_file(program, arch)
    try:
        return cupy.RawModule(path=str(file)).get_function(program.kernel).kernel
    except cupy.cuda.driver.CUDADriverError as error:
        raise BackendError(
            f"the NVIDIA driver does not load {file} ({error}). Delete it, if the disk was full; "
            "else update the driver, or choose backend='torch'."
        ) from error


@cache
def device_facts(device: torch.device) -> Facts:
    """Return what a GPU is.

    Raises
    ------
    BackendError
        If it is older than the kernels can be compiled for.
    """
    import torch

    found = torch.cuda.get_device_properties(device)
    if (found.major, found.minor) < (7, 5):
        raise BackendError(
            f"{found.name} has compute capability {found.major}.{found.minor}; the kernels need "
            "7.5. Choose backend='torch'."
        )
    # The "a" is what makes wgmma available; it is of this one architecture.
    suffix = "a" if (found.major, found.minor) == (9, 0) else ""
    return Facts(f"{found.major}{found.minor}{suffix}", found.multi_processor_count, found.name)
