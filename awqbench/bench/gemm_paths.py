"""Compute paths that can be timed side by side: those of this package.

`peers` adds those of others. A path makes its own copies of a weight before anything is
timed, so that what is timed is the product alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from awqbench.bench.gemm_cases import GemmCase
from awqbench.gemm import available_backends, gemm
from awqbench.packed import PackedWeight

# What "native" may turn activations into, where it offers the choice, and their arithmetic.
NATIVE_ACTIVATIONS = {"int16": "bfloat16", "float32": "float32", "int8": "int8"}
_TORCH_TYPES = ("float32", "bfloat16")


def _always(case: GemmCase) -> str:
    return ""


@dataclass(frozen=True)
class Path:
    """A way to compute y = x Wᵀ.

    Attributes
    ----------
    name : str
        For tables.
    is_peer : bool
        Whether it is someone else's: others are compared with it.
    prepare : callable
        ``prepare(packed, copies)`` makes so many copies of the weight and returns a list of
        functions that multiply x by one each.
    convert : callable
        Turns an (M, K) ndarray of float32 into the x that those functions take.
    why_absent : callable
        ``why_absent(case)`` is why the path cannot be timed, or "".
    dense_bytes : int
        Bytes of a weight element where it is dense; 0 where it stays packed.
    arithmetic : {"float32", "bfloat16", "int8"}
        The probe that multiplies as fast as the path could. Activations of 16-bit integers have
        the rate of bfloat16: pairs of either are one AVX-512 instruction, and on AMX they are
        two products of bytes.
    """

    name: str
    is_peer: bool
    prepare: Callable[[PackedWeight, int], Sequence[Callable[[Any], Any]]]
    convert: Callable[[np.ndarray], Any] = np.asarray
    why_absent: Callable[[GemmCase], str] = _always
    dense_bytes: int = 0
    arithmetic: str = "int8"

    def weight_bytes(self, case: GemmCase) -> int:
        """Return what one product must read: the packed weight as stored, or the dense one.

        A path that unpacks to something wider is not credited for the extra bytes it reads.
        """
        if self.dense_bytes:
            return self.dense_bytes * case.in_features * case.out_features
        return case.weight_bytes


def own_paths() -> list[Path]:
    """Return the paths of every backend of this package; absent ones say why.

    Returns
    -------
    list of Path
        torch once for each dtype of activations, native once for each of its precisions.
    """
    paths = []
    for backend, reason in available_backends().items():
        if backend == "cuda":
            reason = reason or "a GPU's clock is not the CPU's: `bench gemm` times the CPU."
        for name, convert, choices, arithmetic in _variants(backend):
            prepare = partial(_prepare_own, backend=backend, convert=convert, choices=choices)
            why_absent = partial(_given_reason, reason=reason)
            paths.append(Path(name, False, prepare, convert, why_absent, arithmetic=arithmetic))
    return paths


def _given_reason(case: GemmCase, *, reason: str) -> str:
    return reason


def _variants(
    backend: str,
) -> list[tuple[str, Callable[[np.ndarray], Any], dict[str, str], str]]:
    """Return name, conversion of x, settings and arithmetic of each."""
    if backend == "torch":
        return [(f"torch {dtype}", as_torch(dtype), {}, dtype) for dtype in _TORCH_TYPES]
    if backend == "native" and "activations" in inspect.signature(gemm).parameters:
        return [
            (f"native {kind}", np.asarray, {"activations": kind}, arithmetic)
            for kind, arithmetic in NATIVE_ACTIVATIONS.items()
        ]
    return [(backend, np.asarray, {}, "float32")]


def as_torch(dtype: str) -> Callable[[np.ndarray], Any]:
    """Return a function that makes a tensor of some dtype from an array."""

    def convert(x: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(x).to(getattr(torch, dtype))

    return convert


def _prepare_own(
    packed: PackedWeight, copies: int, *, backend: str, convert: Callable, choices: dict[str, str]
) -> list[Callable[[Any], Any]]:
    x = convert(np.ones((1, packed.in_features), np.float32))
    calls = []
    for _ in range(copies):
        # Another object with the same arrays: the repacked form is kept for each object.
        call = partial(gemm, packed=replace(packed), backend=backend, **choices)
        call(x)  # makes that form
        calls.append(call)
    return calls


def as_array(y: Any) -> np.ndarray:
    """Return a result as float64, whatever holds it."""
    if hasattr(y, "detach"):
        y = y.detach().double().cpu().numpy()
    return np.asarray(y, np.float64)
