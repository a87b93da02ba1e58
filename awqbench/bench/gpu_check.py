"""Products of this package's kernels on a GPU against float64: weights, tokens with tails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd

from awqbench.bench.gpu_paths import PATHS, GpuCase, GpuPath, Product
from awqbench.errors import AwqbenchError
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import torch

# Relative Frobenius error to float64 at which a row is called wrong: rounding y costs 3e-4 in
# float16 and 2e-3 in bfloat16, rounding weights as much again.
LIMITS = {"float16": 2e-3, "bfloat16": 1e-2}
# Weights and tokens with tails: K, N, bits, group_size (0: whole rows), tokens.
CHECKS = (
    (4096, 4096, 4, 128, (1, 8, 9, 32, 33, 64, 200, 1000)),
    (2048, 1000, 4, 32, (1, 17, 40, 130)),
    (1160, 72, 4, 0, (3, 70)),
    (4096, 520, 4, 64, (5, 31, 97)),
    (4096, 1040, 8, 128, (1, 16, 64, 300)),
    (1056, 136, 8, 32, (2, 90)),
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
    """Compare this package's paths with float64.

    Returns
    -------
    DataFrame
        `is_wrong` says whether a row is above `LIMITS`, or not finite; `failure` what was raised
        instead of a result, or "".
    """
    rows = []
    own = [path for path in PATHS if not path.is_peer]
    for k, n, bits, group_size, tokens in progress_bar(CHECKS, "check", unit="weight"):
        case = GpuCase(k, n, bits, group_size or k, device=device)
        for path in own:
            if path.why_not(case):
                continue
            for m, error, failure in _errors(case, path, tokens):
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
                        "failure": failure,
                    }
                )
    return pd.DataFrame(rows)


def _errors(
    case: GpuCase, path: GpuPath, tokens: tuple[int, ...]
) -> Iterator[tuple[int, float, str]]:
    """Yield numbers of tokens, a path's error for so many random ones, and what it raised."""
    product = None
    for m in tokens:
        try:
            product = product or path.prepare(case)
            x = random_tokens(case, m, path.dtype)
            yield m, relative_error(product, x, case.exact(x)), ""
        except (RuntimeError, AwqbenchError) as error:  # no memory, no launch
            yield m, float("nan"), f"{type(error).__name__}: {error}"


def relative_error(product: Product, x: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative Frobenius error of a product to float64."""
    with poisoned_memory():
        y = product(x)
    return float((y.double() - exact).norm() / exact.norm())


def random_tokens(case: GpuCase, m: int, dtype: str) -> torch.Tensor:
    """Return fresh random tokens, (m, K), for a weight."""
    import torch

    x = torch.randn(m, case.packed.in_features, device=case.device)
    return x.to(getattr(torch, dtype))
