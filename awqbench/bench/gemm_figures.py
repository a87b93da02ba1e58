"""Figures of timed products: rates, shares of the machine's ceilings, ratios to peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from awqbench.bench.gemm_cases import GemmCase
from awqbench.bench.gemm_paths import Path
from awqbench.bench.timing import Timing

if TYPE_CHECKING:
    import pandas as pd

# 8-bit activations, the coarsest that anyone computes with, stay near 1e-2; beyond this a
# result is another product.
WRONG_ABOVE = 0.05
# Probes of arithmetic, widest numbers first.
_ARITHMETIC = ("float32", "bfloat16", "int8")
# Begins the names of the columns of ratios.
VERSUS = "vs "


def figures(
    case: GemmCase, path: Path, timing: Timing, rates: dict[str, float], *, error: float
) -> dict[str, Any]:
    """Return the row of one path: times, rates, and shares of what the probes reached.

    Parameters
    ----------
    case : GemmCase
    path : Path
    timing : Timing
        Of one product.
    rates : dict of str to float
        Of the probes in the same run, 1e9 bytes or operations a second; the peak is the
        highest of those of arithmetic.
    error : float
        Relative Frobenius error to float64.

    Returns
    -------
    dict
        `bound_s` is the least time that the probes allow a path of this arithmetic: reading the
        weight or computing, whichever is longer; `roofline_fraction` is that over the median.
    """
    weight_bytes, median = path.weight_bytes(case), timing.median_s
    peak = max(rate for name, rate in rates.items() if name != "read")
    bound = max(weight_bytes / rates["read"], case.flop / _peak_of(path, rates)) / 1e9
    gb_s, gflop_per_s = weight_bytes / median / 1e9, case.flop / median / 1e9
    shares = gb_s / rates["read"], gflop_per_s / peak
    return {
        "shape": case.shape,
        "in_features": case.in_features,
        "out_features": case.out_features,
        "tokens": case.tokens,
        "bits": case.bits,
        "group_size": case.group_size,
        "path": path.name,
        "is_peer": path.is_peer,
        "min_s": timing.min_s,
        "median_s": median,
        "spread": timing.spread,
        "weight_bytes": weight_bytes,
        "gb_s": gb_s,
        "read_gb_s": rates["read"],
        "fraction_of_read": shares[0],
        "gflop_per_s": gflop_per_s,
        "peak_gflop_per_s": peak,
        "fraction_of_peak": shares[1],
        "bound_s": bound,
        "roofline_fraction": bound / median,
        "rel_error": error,
        "is_wrong": not error < WRONG_ABOVE,
    }


def _peak_of(path: Path, rates: dict[str, float]) -> float:
    """Return the rate of a path's arithmetic, or of a wider one where that is faster."""
    names = _ARITHMETIC[: _ARITHMETIC.index(path.arithmetic) + 1]
    return max(rates[name] for name in names if name in rates)


def with_ratios(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows of one case with a column for each peer: times faster than it.

    Ratios of medians; NaN where either result is wrong.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    for peer in (row for row in rows if row["is_peer"]):
        ratio = peer["median_s"] / table["median_s"]
        is_fair = ~table["is_wrong"] & (not peer["is_wrong"])
        table[VERSUS + peer["path"]] = ratio.where(is_fair)
    return table
