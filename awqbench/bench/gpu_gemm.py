"""Packed products on an NVIDIA GPU: checked against float64, then timed beside their peers.

The protocol: ceilings first in the same run; every path checked on fresh random numbers with
its outputs poisoned; copies of a weight that together are at least four times the cache; one
CUDA graph a path, replayed in turns with the others. Not run on a GPU so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from awqbench.bench.gpu_paths import PATHS, GpuCase, GpuPath, Product
from awqbench.bench.gpu_timing import GpuCeilings, GpuTime, time_in_turns
from awqbench.errors import DeviceError
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import torch

SHAPES = ((4096, 4096), (4096, 12288), (8192, 29568))
TOKENS = (1, 8, 16, 64, 256, 1024, 4096)
# Relative Frobenius error to float64 at which a row is called wrong: rounding y costs 3e-4 in
# float16 and 2e-3 in bfloat16, rounding weights as much again.
LIMITS = {"float16": 2e-3, "bfloat16": 1e-2}
_CACHES = 4
_MIN_COPIED_BYTES = 256_000_000
_MAX_COPIES = 32
# What a peer may raise that does not run here. Anything else is a mistake of ours.
_FAILURES = (ImportError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError)
# Weights and tokens with tails: K, N, bits, group_size (0: whole rows), tokens.
CHECKS = (
    (4096, 4096, 4, 128, (1, 8, 9, 32, 33, 64, 200, 1000)),
    (2048, 1000, 4, 32, (1, 17, 40, 130)),
    (1160, 72, 4, 0, (3, 70)),
    (4096, 520, 4, 64, (5, 31, 97)),
    (4096, 1040, 8, 128, (1, 16, 64, 300)),
    (1056, 136, 8, 32, (2, 90)),
)


class Prepared(NamedTuple):
    """A path with its products, one for each copy of the weight."""

    path: GpuPath
    products: list[Product]


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


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch allocates with NaN, so that an output that is not written is seen."""
    import torch

    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)


def check_kernels(device: str) -> pd.DataFrame:
    """Compare this package's paths with float64 on weights and tokens with tails.

    Returns
    -------
    DataFrame
        `is_wrong` says whether a row is above `LIMITS`, or not finite.
    """
    rows = []
    own = [path for path in PATHS if not path.is_peer]
    for k, n, bits, group_size, tokens in progress_bar(CHECKS, "check", unit="weight"):
        case = GpuCase(k, n, bits, group_size or k, device=device)
        for path in own:
            if bits not in path.bits:
                continue
            product = path.prepare(case)
            for m in tokens:
                error = _error(case, path, product, m)
                rows.append(
                    {
                        "in_features": k,
                        "out_features": n,
                        "bits": bits,
                        "group_size": group_size or k,
                        "tokens": m,
                        "path": path.name,
                        "rel_error": error,
                        "is_wrong": not error <= LIMITS[path.dtype],
                    }
                )
    return pd.DataFrame(rows)


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
        A row for each; `attrs["absent"]` names what is missing and why,
        `attrs["is_complete"]` is False if time ran out.
    """
    deadline = time.monotonic() + time_limit_s
    rows, absent, is_complete = [], {}, True
    for k, n in shapes:
        case = GpuCase(k, n, bits, k if group_size == -1 else group_size, device=device)
        prepared = _prepare(case, ceilings, absent)
        for m in progress_bar(tokens, f"{k}x{n}", unit="size"):
            if time.monotonic() > deadline:
                is_complete = False
                break
            rows += _time_tokens(case, prepared, ceilings, m, absent)
    table = pd.DataFrame(rows)
    table.attrs |= {"absent": absent, "is_complete": is_complete}
    return table


def _prepare(case: GpuCase, ceilings: GpuCeilings, absent: dict[str, str]) -> list[Prepared]:
    n_copies = copies(weight_bytes(case), ceilings.l2_bytes)
    prepared = []
    for path in PATHS:
        reason = path.why_absent() if case.packed.bits in path.bits else "it takes other bits"
        if not reason:
            try:
                made = [path.prepare(case) for _ in range(n_copies)]
                prepared.append(Prepared(path, made))
            except _FAILURES as error:
                if not path.is_peer:
                    raise
                reason = f"{type(error).__name__}: {error}"
        if reason:
            absent[path.name] = reason
    return prepared


def copies(nbytes: int, l2_bytes: int) -> int:
    """Return how many copies of a weight to take in turns, for each to come from memory."""
    copied = max(_MIN_COPIED_BYTES, _CACHES * l2_bytes)
    return min(_MAX_COPIES, max(2, -(-copied // nbytes)))


def _time_tokens(
    case: GpuCase, prepared: list[Prepared], ceilings: GpuCeilings, m: int, absent: dict[str, str]
) -> list[dict]:
    calls, errors = {}, {}
    for path, products in prepared:
        if m > path.max_tokens:
            continue
        try:
            errors[path.name] = _error(case, path, products[0], m)
        except _FAILURES as error:
            if not path.is_peer:
                raise
            absent[path.name] = f"{type(error).__name__}: {error}"
            continue
        tokens = [_tokens(case, m, path.dtype) for _ in products]
        calls[path.name] = [
            lambda product=product, x=x: product(x)
            for product, x in zip(products, tokens, strict=True)
        ]
    times = time_in_turns(calls)
    named = {path.name: path for path, _ in prepared}
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
    peers = [t.median_s for name, t in times.items() if "awqbench" not in name]
    return {
        "shape": f"{k}x{n}",
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
        "vs_cublas": times[f"cuBLAS {path.dtype}"].median_s / taken.median_s,
        "vs_best_peer": min(peers) / taken.median_s,
        "rel_error": error,
        "is_wrong": not error <= LIMITS[path.dtype],
    }


def _error(case: GpuCase, path: GpuPath, product: Product, m: int) -> float:
    """Return the relative Frobenius error to float64 for m fresh random tokens."""
    x = _tokens(case, m, path.dtype)
    with poisoned_memory():
        y = product(x)
    exact = case.exact(x)
    return float((y.double() - exact).norm() / exact.norm())


def _tokens(case: GpuCase, m: int, dtype: str) -> torch.Tensor:
    import torch

    x = torch.randn(m, case.packed.in_features, device=case.device)
    return x.to(getattr(torch, dtype))


def weight_bytes(case: GpuCase) -> int:
    """Return the fewest bytes a weight takes: codes, float16 scales, packed zero points."""
    packed = case.packed
    return packed.codes.size * packed.bits // 8 + packed.scales.size * (16 + packed.bits) // 8
