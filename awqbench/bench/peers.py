"""Other people's ways to compute y = x Wᵀ, behind one small interface.

Labels lie: an "f32" path may quantize activations to 8 bits, and an operator may be fast in
one dtype only. So each is timed beside its own error against float64, and one whose result
is wrong gets no ratio.

Packages that do not go together are timed from environments of their own, each with awqbench
and some of them; torch's operators are in each run, for comparing one run with another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from awqbench.bench.gemm_cases import GemmCase
from awqbench.bench.gemm_paths import Path, as_torch
from awqbench.bench.peers_ggml import ggml_peer
from awqbench.bench.peers_gptqmodel import gptqmodel_peer
from awqbench.bench.peers_onnx import onnx_peers
from awqbench.packed import PackedWeight

_INT4PACK_GROUPS = (32, 64, 128, 256)


def peer_paths() -> list[Path]:
    """Return the peers that this module knows, whether they can be used here or not.

    Returns
    -------
    list of Path
        torch's packed operators, torch and NumPy with a dense weight, and what `peers_onnx`,
        `peers_gptqmodel` and `peers_ggml` know.
    """
    return [
        _torch_packed("torch int4pack", _int4pack, _no_int4pack),
        _torch_packed("torch int8pack", _int8pack, _no_int8pack),
        _torch_dense("bfloat16", 2),
        _torch_dense("float32", 4),
        Path("NumPy dense float32", True, _numpy_dense, dense_bytes=4, arithmetic="float32"),
        *onnx_peers(),
        gptqmodel_peer(),
        ggml_peer(),
    ]


def _torch_packed(name: str, prepare: Callable, why_absent: Callable) -> Path:
    return Path(name, True, prepare, as_torch("bfloat16"), why_absent, arithmetic="bfloat16")


def _torch_dense(dtype: str, dense_bytes: int) -> Path:
    def prepare(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
        import torch

        weight = torch.from_numpy(packed.dequantize()).to(getattr(torch, dtype))
        return [_linear(weight.clone()) for _ in range(copies)]

    name = f"torch dense {dtype}"
    convert = as_torch(dtype)
    return Path(name, True, prepare, convert, dense_bytes=dense_bytes, arithmetic=dtype)


def _linear(weight: Any) -> Callable[[Any], Any]:
    from torch.nn.functional import linear

    return lambda x: linear(x, weight)


def _numpy_dense(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    weights = [packed.dequantize() for _ in range(copies)]
    return [lambda x, w=w: x @ w.T for w in weights]


def _no_int4pack(case: GemmCase) -> str:
    if case.bits != 4 or case.group_size not in _INT4PACK_GROUPS or case.out_features % 32:
        return (
            f"takes 4 bits, groups of {_INT4PACK_GROUPS} and N a multiple of 32, not {case.bits} "
            f"bits, group {case.group_size}, N = {case.out_features}."
        )
    return _no_operator("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu")


def _no_operator(*names: str) -> str:
    import torch

    missing = [name for name in names if not hasattr(torch.ops.aten, name)]
    return f"this torch has no aten::{missing[0]}." if missing else ""


def _int4pack(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    """Return ATen's int4 operator, in bfloat16: it has no fast path for float32."""
    import torch

    operator = torch.ops.aten._weight_int4pack_mm_for_cpu
    codes = torch.from_numpy(packed.codes.astype(np.int32))
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = packed.scales.T
    # w = (code - 8) * scale + zero
    both = np.stack([scales, (8.0 - packed.zeros.T) * scales], axis=-1)
    both = torch.from_numpy(np.ascontiguousarray(both, np.float32)).bfloat16()
    pairs = [(codes.clone(), both.clone()) for _ in range(copies)]
    return [lambda x, c=c, b=b: operator(x, c, packed.group_size, b) for c, b in pairs]


def _no_int8pack(case: GemmCase) -> str:
    if case.bits != 8 or case.group_size != case.in_features:
        return (
            "takes 8 bits with one scale for a row (--bits 8 --group-size -1), not "
            f"{case.bits} bits, group {case.group_size}."
        )
    return _no_operator("_weight_int8pack_mm")


def _int8pack(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    import torch

    operator = torch.ops.aten._weight_int8pack_mm
    codes = torch.from_numpy((packed.codes - np.uint8(128)).view(np.int8))
    scales = torch.from_numpy(packed.scales[:, 0].copy()).bfloat16()
    weights = [codes.clone() for _ in range(copies)]
    return [lambda x, w=w: operator(x, w, scales) for w in weights]
