"""y = x Wᵀ by the compiled kernels of kernels/native_*.cpp, called through ctypes.

The instruction set is chosen at run time: the best of those that the processor has and that
give the right answer to a small product when the library is loaded. ctypes releases the GIL,
and calls from several threads are safe.

The AMX level has run only with its tile instructions emulated, where it is bit by bit the AVX-512
level; no processor with AMX has run it yet, and how fast it is there is not known.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import BackendError, ParameterError
from awqbench.gemm import native_build
from awqbench.gemm.native_layout import SCALE_TYPES, NativeWeight, stream_weight
from awqbench.gemm.native_threads import default_threads, torch_parallel
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

# Relative Frobenius error to float64, on normal tokens: below 1e-4 (also where a few channels
# are 100 times the others), 1e-6, and about 1e-2.
ACTIVATIONS = ("int16", "float32", "int8")
_TYPES = ("torch.float32", "torch.bfloat16")
_OUT_OF_MEMORY = 2


class _Weight(ctypes.Structure):
    _fields_ = [
        ("stream", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("n_chunks", ctypes.c_int64),
        ("unit", ctypes.c_int32),
        ("code_bits", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("activations", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("parallel", ctypes.c_void_p),
    ]


class Library(NamedTuple):
    """The loaded kernels: levels that can be used, by name, best first, and why others not."""

    functions: ctypes.CDLL
    levels: dict[str, int]
    disabled: dict[str, str]

    @property
    def best(self) -> int:
        """The first of the levels."""
        return next(iter(self.levels.values()))


def library() -> Library:
    """Return the kernels, compiled and tested at the first call.

    Raises
    ------
    BackendError
        If they cannot be built, loaded, or give wrong results.
    """
    found = _load()
    if isinstance(found, str):
        raise BackendError(found)
    return found


@cache
def _load() -> Library | str:
    """Return the library, or why there is none: a compiler that failed is not tried again."""
    try:
        path = native_build.build_library()
        functions = ctypes.CDLL(str(path))
    except (BackendError, OSError) as error:
        return str(error)
    functions.awq_level_name.restype = ctypes.c_char_p
    functions.awq_stream_bytes.restype = ctypes.c_int64
    names = [functions.awq_level_name(i).decode() for i in range(functions.awq_level_count())]
    found = Library(functions, {name: level for level, name in enumerate(names)}, {})
    for name in names:
        reason = _self_test(found, name)
        if reason:
            found.disabled[name] = reason
            del found.levels[name]
    if not found.levels:
        return f"no level of the native kernels gives right results: {found.disabled}."
    return found


def is_usable() -> bool:
    """Return whether the kernels work here; compiles them at the first call."""
    return isinstance(_load(), Library)


def choose_activations(activations: str | None, dtype: str, *, is_named: bool) -> str:
    """Return what activations become where the caller may have left it open.

    "int16" where the backend was asked for by name, and for tokens of half precision, which
    are coarser than that. Tokens in float32 that came here by themselves stay exact: "auto"
    is as accurate on every machine.
    """
    if activations is not None:
        return activations
    return "int16" if is_named or dtype in ("float16", "bfloat16") else "float32"


def takes(x: torch.Tensor) -> bool:
    """Return whether a tensor can be multiplied here without losing digits or a gradient."""
    import torch

    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def matmul_any(
    x: np.ndarray | torch.Tensor, weight: NativeWeight, **settings
) -> np.ndarray | torch.Tensor:
    """As `matmul`, for tokens of every floating-point dtype, computed in float32."""
    if isinstance(x, np.ndarray):
        if x.dtype == np.float32:
            return matmul(x, weight, **settings)
        with np.errstate(over="ignore", invalid="ignore"):
            y = matmul(x.astype(np.float32), weight, **settings)
            return y.astype(x.dtype, copy=False)
    if str(x.dtype) in _TYPES:
        return matmul(x, weight, **settings)
    return matmul(x.float(), weight, **settings).to(x.dtype)


def why_absent() -> str:
    """Say why the backend cannot be used, or ""; compiles nothing."""
    if _load.cache_info().currsize:
        found = _load()
        return found if isinstance(found, str) else ""
    return native_build.why_absent()


def matmul(
    x: np.ndarray | torch.Tensor,
    weight: NativeWeight,
    *,
    activations: str = "int16",
    threads: int | None = None,
    level: str | None = None,
) -> np.ndarray | torch.Tensor:
    """Multiply tokens by a weight's stream.

    Parameters
    ----------
    x : (M, K) ndarray of float32, or (..., K) CPU torch.Tensor of float32 or bfloat16
        Rows of any stride; copied where the elements of a row are not side by side.
    weight : NativeWeight
        Of arrays, or of CPU tensors.
    activations : {"int16", "float32", "int8"}
        What x becomes, per token and chunk of a group. "float32" is exact.
    threads : int, optional
        Default as `default_threads`.
    level : str, optional
        Instruction set, for tests: a key of ``library().levels``; default the best.

    Returns
    -------
    (M, N) ndarray or (..., N) torch.Tensor
        Of the kind and dtype of x; computed in int32 and float32, rounded once.

    Raises
    ------
    ParameterError
        If `activations`, `threads` or `level` is none that there is, or an array not float32.
    BackendError
        If the kernels cannot be built.
    MemoryError
        If there is no memory for the activations.
    """
    found = _checked(activations, threads, level)
    n_out = weight.spec.out_features
    if isinstance(x, np.ndarray):
        if x.dtype != np.float32:
            raise ParameterError(f"x is {x.dtype}; the kernels take arrays of float32.")
        if not x.flags.aligned or x.strides[1] != x.itemsize or x.strides[0] % x.itemsize:
            x = np.ascontiguousarray(x)
        y = np.empty((len(x), n_out), np.float32)
        count, stride, type_ = len(x), x.strides[0] // x.itemsize, 0
    else:
        if x.ndim == 2 and (x.stride(1) == 1 or x.shape[1] == 1):
            stride = x.stride(0)
        else:
            x, stride = x.contiguous(), x.shape[-1]
        y = x.new_empty((*x.shape[:-1], n_out))
        count, type_ = x.numel() // x.shape[-1], _TYPES.index(str(x.dtype))
    call = _Call(
        address(x),
        address(y),
        stride,
        count,
        type_,
        ACTIVATIONS.index(activations),
        found.best if level is None else found.levels[level],
        default_threads() if threads is None else threads,
        torch_parallel(),
    )
    _run(found, weight, call)
    return y


def address(values: np.ndarray | torch.Tensor) -> int:
    """Return where the first element lies."""
    return values.ctypes.data if isinstance(values, np.ndarray) else values.data_ptr()


def _checked(activations: str, threads: int | None, level: str | None) -> Library:
    """Return the kernels, if they can be called so."""
    found = library()
    if activations not in ACTIVATIONS:
        raise ParameterError(
            f"no activations {activations!r}; choose one of {', '.join(ACTIVATIONS)}."
        )
    if threads is not None and threads < 1:
        raise ParameterError(f"threads is {threads}; at least 1 is needed.")
    if level is not None and level not in found.levels:
        reason = found.disabled.get(level, "this processor does not have it")
        raise ParameterError(f"no level {level!r}: {reason}; here are {', '.join(found.levels)}.")
    return found


def _run(found: Library, weight: NativeWeight, call: _Call) -> None:
    spec = weight.spec
    described = _Weight(
        address(weight.stream),
        None if weight.order is None else address(weight.order),
        spec.out_features,
        spec.in_features,
        spec.n_chunks,
        spec.unit,
        spec.code_bits,
        SCALE_TYPES.index(spec.stored_scales),
        0,
    )
    status = found.functions.awq_gemm(ctypes.byref(described), ctypes.byref(call))
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"no memory for {call.count} tokens of {spec.name or 'a weight'}.")
    if status:
        raise AssertionError(f"awq_gemm refused {spec} and {call.activations=}, {call.level=}")


def _self_test(found: Library, level: str) -> str:
    """Compare small products of a level with NumPy; return what is wrong, or ""."""
    rng = np.random.default_rng(0)
    for bits in (4, 8):
        packed = PackedWeight(
            codes=rng.integers(0, 1 << bits, (72, 208), dtype=np.uint8),
            scales=rng.random((72, 2)).astype(np.float16).astype(np.float32),
            zeros=rng.integers(0, 1 << bits, (72, 2), dtype=np.uint8),
            bits=bits,
            group_size=128,
        )
        weight = stream_weight(packed)
        x = rng.standard_normal((37, 208)).astype(np.float32)
        exact = x @ packed.dequantize().T
        for activations, limit in (("int16", 2e-4), ("float32", 1e-5), ("int8", 3e-2)):
            for m in (1, 37):
                y = np.empty((m, 72), np.float32)
                call = _Call(
                    address(x), address(y), 208, m, 0, ACTIVATIONS.index(activations),
                    found.levels[level], 1, None,
                )  # fmt: skip
                _run(found, weight, call)
                error = np.linalg.norm(y - exact[:m]) / np.linalg.norm(exact[:m])
                if not error <= limit:
                    return (
                        f"a product of {bits}-bit codes and {activations} activations is wrong "
                        f"by {error:.1e} (limit {limit:.0e})"
                    )
    return ""
