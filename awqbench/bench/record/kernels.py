"""The kernels that a record times: six that need NumPy and numexpr alone, and others.

An exact kernel gives the same bits on every machine, so that its digest proves that it ran
right; of a product, whose sums may be taken in any order, the error to float64 is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from awqbench.bench.record.inputs import BITS, GROUP_SIZE, digest, make_weight
from awqbench.packed import PackedWeight

# Bytes of a float32, of a scale as a checkpoint stores it, and of a dense weight.
_FLOAT, _SCALE = 4, 2
_DENSE = {"float32": 4, "bfloat16": 2}


class Problem(NamedTuple):
    """What a kernel works on: a weight (N, K) and tokens (M, K)."""

    packed: PackedWeight
    x: np.ndarray


Call = Callable[[], Any]
Prepare = Callable[[Problem, int, int], Sequence[Call]]


@dataclass(frozen=True)
class Kernel:
    """One thing that is timed.

    Attributes
    ----------
    name, backend : str
        What is computed, and by what.
    prepare : callable
        ``prepare(problem, copies, threads)`` returns calls that work on a copy each.
    takes_threads : bool
        False where it runs on one thread whatever is asked for.
    is_product : bool
        Whether it multiplies by tokens; else its output is exact.
    act_dtype : str or None
        What a product turns tokens into.
    """

    name: str
    backend: str
    prepare: Prepare
    takes_threads: bool = True
    is_product: bool = True
    act_dtype: str | None = "float32"


def bytes_per_call(
    kernel: str, tokens: int, in_features: int, out_features: int, *, act_dtype: str | None = None
) -> int:
    """Return the bytes that a call must read and write, whatever it does in between.

    Parameters
    ----------
    kernel : {"unpack", "dequantize", "gemm", "dense"}
    tokens, in_features, out_features : int
        M, K, N.
    act_dtype : {"float32", "bfloat16"}, optional
        Of tokens and weights of "dense".

    Returns
    -------
    int

    Examples
    --------
    >>> bytes_per_call("unpack", 1, 128, 8)  # 512 of words in, 1024 of codes out
    1536
    """
    weights = in_features * out_features
    n_scales = out_features * (in_features // GROUP_SIZE)
    tokens_bytes = _FLOAT * tokens * (in_features + out_features)
    packed = weights * BITS // 8 + n_scales * _SCALE + n_scales * BITS // 8
    return {
        "unpack": weights * BITS // 8 + weights,
        # From a byte a code, as PackedWeight holds them, with scales in float32.
        "dequantize": weights + n_scales * (_FLOAT + 1) + weights * _FLOAT,
        "gemm": packed + tokens_bytes,
        "dense": weights * _DENSE.get(act_dtype, _FLOAT) + tokens_bytes,
    }[kernel]


def expected_digest(kernel: str, in_features: int, out_features: int) -> str | None:
    """Return the digest of an exact kernel's output, by the reference; None for a product."""
    if kernel == "unpack":
        return digest(make_weight(in_features, out_features).codes)
    if kernel == "dequantize":
        return digest(make_weight(in_features, out_features).dequantize())
    return None


def _unpack_numpy(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    from awqbench.formats.layouts.packing import pack_awq, unpack_awq_columns
    from awqbench.gemm.layout import cached_form

    words = cached_form(problem.packed, "AWQ words", lambda packed: pack_awq(packed.codes.T))
    return [_bound(unpack_awq_columns, words.copy()) for _ in range(copies)]


def _dequantize_numpy(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    weights = (replace(problem.packed, codes=problem.packed.codes.copy()) for _ in range(copies))
    return [weight.dequantize for weight in weights]


def _dequantize_numexpr(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    import numexpr

    packed = problem.packed
    shape = (packed.out_features, packed.n_groups, packed.group_size)
    scales, zeros = packed.scales[..., None], packed.zeros[..., None].astype(np.float32)

    def call(codes: np.ndarray) -> np.ndarray:
        # uint8 is widened to int32, and int32 with float32 to float64: hence one cast more.
        given = {"codes": codes.astype(np.float32), "zeros": zeros, "scales": scales}
        decoded = numexpr.evaluate("(codes - zeros) * scales", local_dict=given)
        return decoded.reshape(packed.out_features, packed.in_features)

    return [_bound(call, packed.codes.reshape(shape).copy()) for _ in range(copies)]


def _gemm_arrays(backend: str) -> Prepare:
    def prepare(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
        from awqbench.gemm import array_matmul
        from awqbench.gemm.layout import cached_form, tile_weight

        matmul = array_matmul(backend)
        tiled = cached_form(problem.packed, "tiles", tile_weight)
        forms = [replace(tiled, codes=tiled.codes.copy()) for _ in range(copies)]
        return [_bound(matmul, problem.x, form) for form in forms]

    return prepare


def _dense_numpy(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    dense = problem.packed.dequantize()
    return [_bound(np.matmul, problem.x, dense.copy().T) for _ in range(copies)]


def _gemm_native(activations: str) -> Prepare:
    def prepare(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
        from awqbench.gemm import native
        from awqbench.gemm.layout import cached_form
        from awqbench.gemm.native_layout import aligned_bytes, stream_weight

        weight = cached_form(problem.packed, "native", stream_weight)

        def multiply(stream: np.ndarray) -> np.ndarray:
            form = weight._replace(stream=stream)
            return native.matmul(problem.x, form, activations=activations, threads=threads)

        streams = [aligned_bytes(len(weight.stream)) for _ in range(copies)]
        for stream in streams:
            stream[:] = weight.stream
        return [_bound(multiply, stream) for stream in streams]

    return prepare


def _gemm_torch(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    import torch

    from awqbench.gemm import int4pack

    tiles, int4 = _torch_forms(problem.packed)
    x = torch.from_numpy(problem.x).bfloat16()
    forms = [int4._replace(codes=int4.codes.clone()) for _ in range(copies)]
    return [_bound(int4pack.matmul, x, tiles, form) for form in forms]


def _torch_forms(packed: PackedWeight) -> tuple:
    from awqbench.gemm import int4pack
    from awqbench.gemm.layout import cached_form, tile_weight
    from awqbench.gemm.torch_ import to_tensors

    def make(source: PackedWeight) -> tuple:
        tiles = to_tensors(cached_form(source, "tiles", tile_weight), "cpu")
        return tiles, int4pack.from_tiles(tiles)

    return cached_form(packed, "recorded torch", make)


def _dense_torch(problem: Problem, copies: int, threads: int) -> Sequence[Call]:
    import torch

    dense = torch.from_numpy(problem.packed.dequantize()).bfloat16()
    x = torch.from_numpy(problem.x).bfloat16()
    weights = [dense.clone().T for _ in range(copies)]
    return [_bound(torch.matmul, x, weight) for weight in weights]


def _bound(function: Callable, *arguments: Any) -> Call:
    return lambda: function(*arguments)


_EVERYWHERE = (
    Kernel("unpack", "numpy", _unpack_numpy, False, False, None),
    Kernel("dequantize", "numpy", _dequantize_numpy, False, False, None),
    Kernel("dequantize", "numexpr", _dequantize_numexpr, True, False, None),
    Kernel("gemm", "numpy", _gemm_arrays("numpy")),
    Kernel("gemm", "numexpr", _gemm_arrays("numexpr")),
    Kernel("dense", "numpy", _dense_numpy),
)
_NATIVE = tuple(
    Kernel("gemm", "native", _gemm_native(kind), act_dtype=kind) for kind in ("int16", "int8")
)
_TORCH_DENSE = Kernel("dense", "torch", _dense_torch, act_dtype="bfloat16")
_TORCH_INT4 = Kernel("gemm", "torch", _gemm_torch, act_dtype="bfloat16")


def usable_kernels(*, everywhere_only: bool = False) -> tuple[list[Kernel], dict[str, str]]:
    """Return the kernels that run here, and of absent backends why.

    Parameters
    ----------
    everywhere_only : bool
        Only those that need nothing but NumPy and numexpr.

    Returns
    -------
    tuple of (list of Kernel, dict of str to str)
    """
    from importlib.util import find_spec

    from awqbench.gemm import native

    found, absent = list(_EVERYWHERE), {}
    if everywhere_only:
        return found, absent
    if native.is_usable():
        found += _NATIVE
    else:
        absent["native"] = native.why_absent()
    if find_spec("torch") is None:
        absent["torch"] = "torch is not installed."
        return found, absent
    found.append(_TORCH_DENSE)
    if _torch_forms(make_weight(GROUP_SIZE, 64))[1] is None:
        absent["torch int4pack"] = "this torch has none for this processor."
    else:
        found.append(_TORCH_INT4)
    return found, absent
