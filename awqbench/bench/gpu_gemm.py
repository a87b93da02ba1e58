"""Packed products on an NVIDIA GPU: checked against float64, then timed beside their peers.

The protocol: ceilings first in the same run; every path checked on fresh random numbers with
its outputs poisoned; copies of a weight that together are at least four times the cache; one
CUDA graph a path, replayed in turns with the others. Not run on a GPU so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from awqbench.bench.gpu_check import LIMITS, random_tokens, relative_error
from awqbench.bench.gpu_paths import PATHS, GpuCase, GpuPath, Product
from awqbench.bench.gpu_timing import GpuCeilings, GpuTime, time_in_turns
from awqbench.errors import AwqbenchError, DeviceError
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import torch

SHAPES = ((4096, 4096), (4096, 12288), (8192, 29568))
TOKENS = (1, 8, 16, 64, 256, 1024, 4096)
_CACHES = 4
_MIN_COPIED_BYTES = 256_000_000
_MAX_COPIES = 32
# A peer that has compiled for longer than this in all, shape by shape and number by number of
# tokens, is left out of what is still to come.
_PATIENCE_S = 40


class Prepared(NamedTuple):
    """A path with its products, one for each copy of the weight."""

    path: GpuPath
    products: list[Product]


@dataclass
class Notes:
    """What is not timed and why: by path, or by size where a size ended in an error.

    `failed` are those of `absent` that should have run, `spent_s` what first calls have taken.
    """

    absent: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    spent_s: dict[str, float] = field(default_factory=dict)

    def fail(self, path: GpuPath, error: Exception) -> None:
        """Note what a path raised; raise it again if it is a mistake of this package."""
        if path.is_peer:
            self.absent[path.name] = _text_of(error)
        elif isinstance(error, (RuntimeError, AwqbenchError)):  # no memory, no launch
            self.fail_at(path.name, error)
        else:
            raise error

    def fail_at(self, name: str, error: Exception) -> None:
        """Note what should have run."""
        self.absent[name] = _text_of(error)
        if name not in self.failed:
            self.failed.append(name)

    @contextmanager
    def first_call(self, path: GpuPath) -> Iterator[None]:
        """Count the time in which a path compiles."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = self.spent_s.get(path.name, 0) + time.monotonic() - started
            self.spent_s[path.name] = spent
        if self.is_tired_of(path):
            self.absent[path.name] = f"its first calls took {spent:.0f} s; left out from there on"

    def is_tired_of(self, path: GpuPath) -> bool:
        """Tell whether a path of another package has compiled for too long."""
        is_compiled_late = path.is_peer and path.package != "torch"
        return is_compiled_late and self.spent_s.get(path.name, 0) > _PATIENCE_S


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def require_gpu() -> None:
    """Check that torch reaches a GPU.

    Raises
    ------
    DeviceError
        If not; one sentence.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(
            "no GPU: torch finds no CUDA device on this machine, and the kernels can only be "
            "compiled here (python benchmarks/cuda_compile.py)."
        )


def bench_gemm(
    ceilings: GpuCeilings,
    *,
    device: str,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    tokens: tuple[int, ...] = TOKENS,
    bits: int = 4,
    group_size: int = 128,
    time_limit_s: float = 400,
) -> pd.DataFrame:
    """Time every path at every shape (K, N) and number of tokens; group size -1: whole rows.

    Returns
    -------
    DataFrame
        A row for each; `attrs["absent"]` names what is missing and why, `attrs["failed"]` what
        of it should have run, `attrs["is_complete"]` is False if time ran out.
    """
    deadline = time.monotonic() + time_limit_s
    rows, notes, is_complete = [], Notes(), True
    for k, n in shapes:
        if time.monotonic() > deadline:  # (before seconds are spent on preparing)
            is_complete = False
            break
        case = GpuCase(k, n, bits, k if group_size == -1 else group_size, device=device)
        prepared = _prepare(case, ceilings, notes)
        for m in progress_bar(tokens, f"{k}x{n}", unit="size"):
            if time.monotonic() > deadline:
                is_complete = False
                break
            try:
                rows += _time_tokens(case, prepared, ceilings, m, notes)
            except RuntimeError as error:  # a kernel that broke the device, at whatever comes next
                notes.fail_at(f"{case.shape} M={m}", error)
        del prepared  # before the next shape's are made
    table = pd.DataFrame(rows)
    table.attrs |= {"absent": notes.absent, "failed": notes.failed, "is_complete": is_complete}
    return table


def _prepare(case: GpuCase, ceilings: GpuCeilings, notes: Notes) -> list[Prepared]:
    n_copies = copies(weight_bytes(case), ceilings.l2_bytes)
    prepared = []
    for path in PATHS:
        if reason := path.why_not(case) or path.why_absent():
            notes.absent[path.name] = reason
            continue
        try:
            with notes.first_call(path):
                made = [path.prepare(case) for _ in range(n_copies)]
        except Exception as error:  # sorted out there
            notes.fail(path, error)
        else:
            prepared.append(Prepared(path, made))
    return prepared


def copies(nbytes: int, l2_bytes: int) -> int:
    """Return how many copies of a weight to take in turns, for each to come from memory."""
    copied = max(_MIN_COPIED_BYTES, _CACHES * l2_bytes)
    return min(_MAX_COPIES, max(2, -(-copied // nbytes)))


def _time_tokens(
    case: GpuCase, prepared: list[Prepared], ceilings: GpuCeilings, m: int, notes: Notes
) -> list[dict]:
    # Paths of a type share their tokens: at 4096 of them a set for each path would fill memory.
    tokens: dict[str, list[torch.Tensor]] = {}
    exact: dict[str, torch.Tensor] = {}
    calls, errors = {}, {}
    for path, products in prepared:
        if m > path.max_tokens or notes.is_tired_of(path):
            continue
        try:
            if path.dtype not in exact:
                tokens[path.dtype] = [random_tokens(case, m, path.dtype) for _ in products]
                exact[path.dtype] = case.exact(tokens[path.dtype][0])
            x = tokens[path.dtype]
            with notes.first_call(path):
                errors[path.name] = relative_error(products[0], x[0], exact[path.dtype])
        except Exception as error:  # sorted out there
            notes.fail(path, error)
            continue
        calls[path.name] = [
            lambda product=product, one=one: product(one)
            for product, one in zip(products, x, strict=True)
        ]
    exact.clear()
    times, failures = time_in_turns(calls)
    named = {path.name: path for path, _ in prepared}
    for name, error in failures.items():
        notes.fail(named[name], error)
    return [
        _row(case, named[name], m, taken, times, ceilings, errors[name])
        for name, taken in times.items()
    ]


def _row(
    case: GpuCase,
    path: GpuPath,
    m: int,
    taken: GpuTime,
    times: dict[str, GpuTime],
    ceilings: GpuCeilings,
    error: float,
) -> dict:
    packed = case.packed
    n, k = packed.out_features, packed.in_features
    nbytes = weight_bytes(case) + 2 * m * (n + k)
    peers = {path.name for path in PATHS if path.is_peer}
    peer_s = [t.median_s for name, t in times.items() if name in peers]
    cublas = times.get(f"cuBLAS {path.dtype}")
    return {
        "shape": case.shape,
        "in_features": k,
        "out_features": n,
        "tokens": m,
        "bits": packed.bits,
        "group_size": packed.group_size,
        "path": path.name,
        "is_peer": path.is_peer,
        **taken._asdict(),
        "floor_bytes": nbytes,
        "gb_s": nbytes / taken.median_s / 1e9,
        "fraction_of_copy": nbytes / taken.median_s / 1e9 / ceilings.copy_gb_s,
        "tflop_s": 2 * m * n * k / taken.median_s / 1e12,
        "vs_cublas": (cublas.median_s if cublas else float("nan")) / taken.median_s,
        "vs_best_peer": min(peer_s, default=float("nan")) / taken.median_s,
        "rel_error": error,
        "is_wrong": not error <= LIMITS[path.dtype],
    }


def weight_bytes(case: GpuCase) -> int:
    """Return the fewest bytes a weight takes: codes, float16 scales, packed zero points."""
    packed = case.packed
    return packed.codes.size * packed.bits // 8 + packed.scales.size * (16 + packed.bits) // 8
