"""ONNX Runtime's MatMulNBits, and OpenVINO on the same graph.

The operator stores, for each row of W and block of K, codes from the low bits up, a scale,
and a zero point packed the same way along the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from awqbench.bench.gemm_cases import GemmCase
from awqbench.bench.gemm_paths import Path
from awqbench.errors import BackendError
from awqbench.packed import PackedWeight

# 0: as the inputs are, float32; 4: activations rounded to 8 bits.
ACCURACY_LEVELS = {0: "float32", 4: "int8"}
_OPSET, _IR_VERSION = 17, 8


def onnx_peers() -> list[Path]:
    """Return ONNX Runtime at each accuracy level, and OpenVINO."""
    why_not = partial(_why_absent, "onnxruntime")
    levels = [
        Path(
            f"ONNX Runtime level {level}",
            True,
            partial(_sessions, level=level),
            why_absent=why_not,
            arithmetic=arithmetic,
        )
        for level, arithmetic in ACCURACY_LEVELS.items()
    ]
    openvino = Path("OpenVINO", True, _compiled, why_absent=partial(_why_absent, "openvino"))
    return [*levels, openvino]


def _why_absent(module: str, case: GemmCase) -> str:
    for name in (module, "onnx"):  # the graph is built with the onnx package
        if find_spec(name) is None:
            return f"{name} is not installed."
    size = case.group_size
    if case.bits not in (4, 8) or size < 16 or size & (size - 1):
        return (
            f"takes 4 or 8 bits and groups of 16, 32, 64 ..., not {case.bits} bits, group {size}."
        )
    return ""


def pack_blocks(packed: PackedWeight) -> dict[str, np.ndarray]:
    """Lay a weight out as MatMulNBits reads it.

    Parameters
    ----------
    packed : PackedWeight
        4 or 8 bits, groups in order, K a multiple of the group size.

    Returns
    -------
    dict of str to ndarray
        `B` (N, G, group_size * bits / 8) and `zero_points` (N, ceil(G * bits / 8)) of uint8,
        `scales` (N, G) of float32.
    """
    codes = packed.codes.reshape(packed.out_features, packed.n_groups, packed.group_size)
    return {
        "B": _low_first(codes, packed.bits),
        "scales": packed.scales,
        "zero_points": _low_first(packed.zeros, packed.bits),
    }


def _low_first(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put two codes of 4 bits into a byte, the first one low, along the last axis."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4


def graph_bytes(packed: PackedWeight, *, level: int) -> bytes:
    """Return an ONNX model of one MatMulNBits, x (M, K) to y (M, N) in float32.

    Parameters
    ----------
    packed : PackedWeight
    level : int
        The operator's `accuracy_level`.
    """
    from onnx import TensorProto, helper, numpy_helper

    parts = pack_blocks(packed)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *parts],
        ["y"],
        domain="com.microsoft",
        K=packed.in_features,
        N=packed.out_features,
        bits=packed.bits,
        block_size=packed.group_size,
        accuracy_level=level,
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", width])
        for name, width in (("x", packed.in_features), ("y", packed.out_features))
    ]
    weights = [numpy_helper.from_array(values, name) for name, values in parts.items()]
    graph = helper.make_graph([node], "gemm", ends[:1], ends[1:], initializer=weights)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return model.SerializeToString()


def _sessions(packed: PackedWeight, copies: int, *, level: int) -> list[Callable[[Any], Any]]:
    import onnxruntime as ort
    import torch
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Each copy has threads of its own; waiting ones would take the processors of the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = graph_bytes(packed, level=level)
    # They share no base but Exception.
    errors = tuple(kind for kind in vars(state).values() if _is_error(kind))
    try:
        sessions = [
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(copies)
        ]
    except errors as error:
        raise BackendError(str(error)) from error
    return [lambda x, s=s: s.run(None, {"x": x})[0] for s in sessions]


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _compiled(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    import openvino
    import torch

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    model = graph_bytes(packed, level=0)
    requests = [
        core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
        for _ in range(copies)
    ]
    # A copy of the result: the request owns the memory it returns.
    return [lambda x, r=r: np.array(r.infer([x])[0]) for r in requests]
