"""The products that are timed on a GPU: this package's kernels, and their peers where they are.

A path is prepared from a weight into a function of tokens. Peers are called as their own
documentation says; what one raises is recorded as the reason for its absence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.formats.layouts.awq import write_linear
from awqbench.gemm import cuda, cuda_awq
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

Product = Callable[["torch.Tensor"], "torch.Tensor"]


class GpuCase:
    """A weight with random codes on a device, as the paths take it."""

    def __init__(
        self, in_features: int, out_features: int, bits: int, group_size: int, *, device: str
    ) -> None:
        self.device = device
        rng = np.random.default_rng()
        shape = (out_features, -(-in_features // group_size))
        scales = rng.uniform(0.002, 0.02, shape).astype(np.float16).astype(np.float32)
        self.packed = PackedWeight(
            rng.integers(0, 1 << bits, (out_features, in_features), dtype=np.uint8),
            scales,
            rng.integers(0, 1 << bits, shape, dtype=np.uint8),
            bits,
            group_size,
        )

    @property
    def shape(self) -> str:
        """Its size as "KxN"."""
        return f"{self.packed.in_features}x{self.packed.out_features}"

    @cached_property
    def awq(self) -> dict[str, torch.Tensor]:
        """The tensors of an AWQ checkpoint."""
        return {name: part.to(self.device) for name, part in write_linear(self.packed).items()}

    @cached_property
    def codes(self) -> torch.Tensor:
        """(N, K) uint8."""
        import torch

        return torch.from_numpy(self.packed.codes).to(self.device)

    def meta(self, name: str) -> torch.Tensor:
        """Return `scales` or `zeros`, (N, G) float32."""
        import torch

        return torch.from_numpy(getattr(self.packed, name)).to(self.device).float()

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Wᵀ in float64, some output channels at a time."""
        import torch

        group = torch.from_numpy(self.packed.group_index()).to(self.device)
        parts = []
        for first in range(0, self.packed.out_features, 2048):
            rows = slice(first, first + 2048)
            zeros, scales = (
                self.meta(name)[rows][:, group].double() for name in ("zeros", "scales")
            )
            parts.append(x.double() @ ((self.codes[rows].double() - zeros) * scales).T)
        return torch.cat(parts, dim=1)


class GpuPath(NamedTuple):
    """A way to multiply: `dtype` of its tokens, `prepare` from a case, `bits` it takes."""

    name: str
    is_peer: bool
    dtype: str
    prepare: Callable[[GpuCase], Product]
    bits: tuple[int, ...] = (4,)
    max_tokens: int = 1 << 30
    package: str = "torch"

    def why_not(self, case: GpuCase) -> str:
        """Say why it does not multiply a weight, or ""."""
        import torch

        if case.packed.bits not in self.bits:
            return "it takes other bits"
        facts = cuda.device_facts(torch.device(case.device))
        if self.dtype == "bfloat16" and facts.arch == "75":
            return f"{facts.name} has no bfloat16"
        return ""

    def why_absent(self) -> str:
        """Say why it cannot be timed here, or ""."""
        return "" if find_spec(self.package) else f"{self.package} is not installed"


def _tiles(case: GpuCase) -> Product:
    import torch

    weight = cuda.to_device(case.packed, torch.device(case.device))
    return lambda x: cuda.matmul(x, weight)


def _direct(case: GpuCase) -> Product:
    weight = cuda_awq.AwqWeight(
        *(case.awq[name].clone() for name in ("qweight", "qzeros", "scales"))
    )
    return lambda x: cuda_awq.matmul(x, weight)


def _dense(dtype: str) -> Callable[[GpuCase], Product]:
    def prepare(case: GpuCase) -> Product:
        import torch

        weight = torch.from_numpy(case.packed.dequantize()).to(case.device, getattr(torch, dtype))
        return lambda x: torch.nn.functional.linear(x, weight)

    return prepare


def _int4pack(case: GpuCase) -> Product:
    """Prepare ATen's tinygemm: w = (code - 8) * scale + zero, two codes a byte, even high."""
    import torch

    codes = case.codes
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    scales = case.meta("scales")
    zeros = (8 - case.meta("zeros")) * scales
    both = torch.stack([scales.T, zeros.T], dim=-1).bfloat16().contiguous()
    group_size = case.packed.group_size
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, group_size, both)


def _humming(case: GpuCase) -> Product:
    import torch
    from humming.layer import HummingLayer

    packed = case.packed
    layer = HummingLayer(
        shape_n=packed.out_features,
        shape_k=packed.in_features,
        weight_config={
            "quant_method": "awq",
            "bits": packed.bits,
            "group_size": packed.group_size,
            "zero_point": True,
        },
        torch_dtype=torch.float16,
    ).to(case.device)
    layer.load_from_tensors(case.awq)
    layer.transform()
    return layer


def _gemlite(case: GpuCase) -> Product:
    from gemlite.helper import A16Wn

    packed = case.packed
    return A16Wn(device=case.device).from_weights(
        case.codes,
        case.meta("scales").half(),
        case.meta("zeros").half(),
        packed.bits,
        packed.group_size,
    )


PATHS = (
    GpuPath("awqbench tiles float16", False, "float16", _tiles, (4, 8)),
    GpuPath("awqbench tiles bfloat16", False, "bfloat16", _tiles, (4, 8)),
    GpuPath("awqbench direct float16", False, "float16", _direct, max_tokens=64),
    GpuPath("cuBLAS float16", True, "float16", _dense("float16"), (4, 8)),
    GpuPath("cuBLAS bfloat16", True, "bfloat16", _dense("bfloat16"), (4, 8)),
    GpuPath("torch int4pack bfloat16", True, "bfloat16", _int4pack, max_tokens=1024),
    GpuPath("humming float16", True, "float16", _humming, package="humming"),
    GpuPath("gemlite float16", True, "float16", _gemlite, (4, 8), package="gemlite"),
)
