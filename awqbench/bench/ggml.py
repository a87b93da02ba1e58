"""ggml's product of two tensors, through the C functions of its shared libraries.

Weights lie in memory of their own and are repacked as ggml would do it when it loads a model;
tokens and results are NumPy's memory, so that a call is the product alone.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from awqbench.errors import BackendError
from awqbench.gemm.native_layout import aligned_bytes

_FLOAT32, Q4_K = 0, 12  # of enum ggml_type
_USED_FOR_WEIGHTS = 1  # of enum ggml_backend_buffer_usage
_MAX_THREADS = 512
_GRAPH_NODES = 8
_BASES, _PROCESSORS = ("libggml-base*.so", "libggml-base*.dylib"), ("libggml-cpu*",)


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _say_nothing(level: int, text: bytes, data: int) -> None:
    """Take a line of ggml's log; it writes one for each weight."""


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class _ThreadParams(ctypes.Structure):
    _fields_ = [
        ("cpumask", c_bool * _MAX_THREADS),
        ("n_threads", c_int),
        ("priority", c_int),
        ("poll", c_uint32),
        ("strict", c_bool),
        ("paused", c_bool),
    ]


# Result and arguments of the functions that are called; the first holders of a name count.
_FUNCTIONS: dict[str, tuple] = {
    "ggml_init": (c_void_p, _InitParams),
    "ggml_free": (None, c_void_p),
    "ggml_log_set": (None, c_void_p, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_threadpool_params_init": (None, c_void_p, c_int),
    "ggml_threadpool_new": (c_void_p, c_void_p),
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    "ggml_backend_cpu_set_threadpool": (None, c_void_p, c_void_p),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_buft_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_buft_get_alloc_size": (c_size_t, c_void_p, c_void_p),
    "ggml_backend_buffer_set_usage": (None, c_void_p, c_int),
    "ggml_backend_buffer_get_base": (c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
}


def has_libraries(folder: Path) -> bool:
    """Return whether ggml's libraries seem to be in a folder; loads nothing."""
    return bool(_files(folder, _BASES) and _files(folder, _PROCESSORS))


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


class Tokens:
    """Tokens where ggml can read them, and the memory of results, by their number of columns."""

    def __init__(self, x: np.ndarray) -> None:
        self.values = _aligned(x.shape)
        self.values[:] = x
        self._results: dict[int, np.ndarray] = {}

    def result(self, columns: int) -> np.ndarray:
        """Return memory for y, the same one at each call."""
        if columns not in self._results:
            self._results[columns] = _aligned((len(self.values), columns))
        return self._results[columns]


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    return aligned_bytes(4 * shape[0] * shape[1]).view(np.float32).reshape(shape)


class Ggml:
    """ggml's functions for this processor, and a CPU backend with threads of its own."""

    def __init__(self, folder: Path, threads: int) -> None:
        base = ctypes.CDLL(str(_files(folder, _BASES)[0]))
        builds = [ctypes.CDLL(str(file)) for file in _files(folder, _PROCESSORS)]
        libraries = [max(builds, key=_score), base]
        for name, (result, *arguments) in _FUNCTIONS.items():
            found = next((lib for lib in libraries if hasattr(lib, name)), None)
            if found is None:
                raise BackendError(f"ggml in {folder} has no {name}; other versions have.")
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self.log_set(_say_nothing, None)
        self.backend = self.backend_cpu_init()
        self._start_threads(threads)
        registry = self.backend_cpu_reg()
        self.device = self.backend_reg_dev_get(registry, 0)
        self.buffer_types = [*self._repacking(registry), self.backend_cpu_buffer_type()]

    def _start_threads(self, threads: int) -> None:
        params = _ThreadParams()
        self.threadpool_params_init(ctypes.byref(params), threads)
        if params.n_threads != threads:
            raise BackendError("this ggml's threads are described otherwise; use another version.")
        # Waits some milliseconds for the next product, as OpenMP's threads do, and not the tenth
        # of a second that is ggml's default: it would take the processors of what is timed next.
        params.poll = 1
        self.backend_cpu_set_n_threads(self.backend, threads)
        pool = self.threadpool_new(ctypes.byref(params))
        self.backend_cpu_set_threadpool(self.backend, pool)

    def _repacking(self, registry: int) -> list[int]:
        """Return the kinds of memory that rearrange weights, best first."""
        address = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(self.device)
        found = []
        while kinds[len(found)]:
            found.append(kinds[len(found)])
        return found

    def context(self) -> int:
        """Return memory for descriptions of a few tensors and a graph."""
        size = 8 * self.tensor_overhead() + self.graph_overhead_custom(_GRAPH_NODES, False)
        return self.init(_InitParams(size, None, True))

    def place(self, tensor: int, values: np.ndarray) -> int:
        """Let a tensor be the memory of an array; return the buffer that says so."""
        buffer = self.backend_cpu_buffer_from_ptr(values.ctypes.data, values.nbytes)
        self.backend_tensor_alloc(buffer, tensor, values.ctypes.data)
        return buffer


def _score(library: ctypes.CDLL) -> int:
    """Return how well a build fits this processor: 0 where it would not run."""
    return library.ggml_backend_score() if hasattr(library, "ggml_backend_score") else 1


@cache
def load_ggml(folder: Path, threads: int) -> Ggml:
    """Return ggml's functions, loaded once for each number of threads.

    Raises
    ------
    BackendError
        If the libraries cannot be loaded or lack a function.
    """
    try:
        return Ggml(folder, threads)
    except OSError as error:
        raise BackendError(f"ggml cannot be loaded: {error}.") from error


class Product:
    """A weight in ggml's memory; called with tokens it returns y = x Wᵀ.

    Parameters
    ----------
    ggml : Ggml
    kind : int
        Of enum ggml_type.
    blocks : (N, ...) ndarray of uint8
        The weight as that type stores it.
    in_features : int
        K.

    Attributes
    ----------
    is_repacked : bool
        Whether ggml rearranged the weight for this processor.
    """

    def __init__(self, ggml: Ggml, kind: int, blocks: np.ndarray, in_features: int) -> None:
        self._ggml, self._columns = ggml, len(blocks)
        self._graphs: dict[int, tuple[Tokens, int]] = {}
        # The first kind of memory that this product can be computed from; the last one always is.
        for buffer_type in ggml.buffer_types:
            context, self._weight = self._new_weight(buffer_type, kind, in_features)
            x = ggml.new_tensor_2d(context, _FLOAT32, in_features, 1)
            y = ggml.mul_mat(context, self._weight, x)
            self.is_repacked = buffer_type != ggml.buffer_types[-1]
            if ggml.backend_dev_supports_op(ggml.device, y):
                break
        ggml.backend_tensor_set(self._weight, blocks.ctypes.data, 0, blocks.nbytes)

    def _new_weight(self, buffer_type: int, kind: int, in_features: int) -> tuple[int, int]:
        """Return a tensor in memory of its own, and the context that it is described in."""
        ggml = self._ggml
        context = ggml.context()
        weight = ggml.new_tensor_2d(context, kind, in_features, self._columns)
        size = ggml.backend_buft_get_alloc_size(buffer_type, weight)
        buffer = ggml.backend_buft_alloc_buffer(buffer_type, size)
        weakref.finalize(self, ggml.free, context)
        weakref.finalize(self, ggml.backend_buffer_free, buffer)
        ggml.backend_buffer_set_usage(buffer, _USED_FOR_WEIGHTS)
        ggml.backend_tensor_alloc(buffer, weight, ggml.backend_buffer_get_base(buffer))
        return context, weight

    def __call__(self, tokens: Tokens) -> np.ndarray:
        """Return y, in memory that the next product of these tokens overwrites."""
        if id(tokens) not in self._graphs:
            self._graphs[id(tokens)] = tokens, self._graph(tokens)
        status = self._ggml.backend_graph_compute(self._ggml.backend, self._graphs[id(tokens)][1])
        if status:
            raise BackendError(f"ggml's product ended with status {status}.")
        return tokens.result(self._columns)

    def _graph(self, tokens: Tokens) -> int:
        ggml = self._ggml
        context = ggml.context()
        weakref.finalize(self, ggml.free, context)
        count, in_features = tokens.values.shape
        x = ggml.new_tensor_2d(context, _FLOAT32, in_features, count)
        y = ggml.mul_mat(context, self._weight, x)
        for tensor, values in ((x, tokens.values), (y, tokens.result(self._columns))):
            weakref.finalize(self, ggml.backend_buffer_free, ggml.place(tensor, values))
        graph = ggml.new_graph_custom(context, _GRAPH_NODES, False)
        ggml.build_forward_expand(graph, y)
        return graph
