"""What a sweep shows and what is noise: verdicts of methods, and the smallest good setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.inspect.sweep import Z95, PairedDelta, Sweep, paired, percent_worse

if TYPE_CHECKING:
    import pandas as pd

# Below this many windows a standard error is itself too uncertain to decide by.
WINDOWS_TO_DECIDE = 16


def paired_table(result: Sweep, a: str, b: str) -> pd.DataFrame:
    """Compare two methods at every bits and group size that both were run at.

    Parameters
    ----------
    result : Sweep
    a, b : str
        Methods.

    Returns
    -------
    DataFrame
        `bits`, `group_size`, `method` (a), `against` (b), `delta_nll`, `delta_se`,
        `significance` (delta over its standard error), `verdict`: ``"better"`` or
        ``"worse"`` beyond two standard errors, ``"noise"`` within them, ``"undecided"`` with
        fewer than 16 windows. No rows where either was not run.
    """
    import pandas as pd

    columns = ["bits", "group_size", "method", "against", "delta_nll", "delta_se"]
    rows = []
    for bits, group_size, method in result.window_nll:
        if method == a and (bits, group_size, b) in result.window_nll:
            delta = paired(result, (bits, group_size, a), (bits, group_size, b))
            rows.append((bits, group_size, a, b, *delta, *_significance(delta, result.n_windows)))
    return pd.DataFrame(rows, columns=[*columns, "significance", "verdict"])


def _significance(delta: PairedDelta, n_windows: int) -> tuple[float, str]:
    ratio = delta.delta / delta.se if delta.se > 0 else 0.0
    if n_windows < WINDOWS_TO_DECIDE:
        return ratio, "undecided"
    if not delta.is_significant:
        return ratio, "noise"
    return ratio, "better" if delta.delta < 0 else "worse"


def summarise_claim(claims: pd.DataFrame, claim: str) -> str:
    """Say in one line whether `a` is better than `b` wherever both were run.

    Parameters
    ----------
    claims : DataFrame
        Rows of `paired_table`.
    claim : str
        What is claimed, as the line's start.

    Returns
    -------
    str
    """
    if claims.empty:
        return f"{claim}: not run"
    if (claims["verdict"] == "undecided").any():
        return f"{claim}: not decided with fewer than {WINDOWS_TO_DECIDE} windows"
    better = int((claims["verdict"] == "better").sum())
    return f"{claim}: {better} of {len(claims)} settings, by more than two standard errors"


def loss_intervals(result: Sweep, bits: int) -> pd.DataFrame:
    """Return what each setting of some bits loses, in per cent with its 95 % interval.

    Parameters
    ----------
    result : Sweep
    bits : int

    Returns
    -------
    DataFrame
        `group_size`, `method`, `loss_percent`, `low`, `high`: perplexity above full
        precision.
    """
    rows = result.table[result.table["bits"] == bits]
    margin = Z95 * rows["delta_se"]
    losses = {"loss_percent": 0, "low": -margin, "high": margin}
    return rows[["group_size", "method"]].assign(
        **{name: percent_worse(rows["delta_nll"] + shift) for name, shift in losses.items()}
    )


def smallest_within(table: pd.DataFrame, percent: float) -> pd.Series | None:
    """Return the smallest setting that loses no more than so many per cent, interval included.

    Parameters
    ----------
    table : DataFrame
        Of a sweep.
    percent : float
        Increase of perplexity that the upper end of the 95 % interval may reach.

    Returns
    -------
    Series or None
        A row of `table`, the most accurate of those with the fewest bits per weight.
    """
    within = table[percent_worse(table["delta_nll"] + Z95 * table["delta_se"]) <= percent]
    if within.empty:
        return None
    return within.sort_values(["bits_per_weight", "delta_nll"]).iloc[0]


def describe_choice(result: Sweep, percent: float) -> str:
    """Answer in one sentence how small a model can be within a loss of perplexity.

    Parameters
    ----------
    result : Sweep
    percent : float
        As in `smallest_within`.

    Returns
    -------
    str
    """
    row = smallest_within(result.table, percent)
    if row is None:
        row = result.table.sort_values("delta_nll").iloc[0]
        lead = (
            f"No setting stays within {percent:g} % of perplexity, interval included; the best is"
        )
    else:
        lead = f"The smallest setting within {percent:g} % of perplexity, interval included, is"
    loss = percent_worse(row["delta_nll"])
    return (
        f"{lead} {row['method']} at {row['bits']} bits with groups of {row['group_size']}: "
        f"{row['bits_per_weight']:.2f} bits per weight, {loss:+.2f} %"
        f"{_rounding_beside(result.table, row)}."
    )


def _rounding_beside(table: pd.DataFrame, row: pd.Series) -> str:
    same = (table["bits"] == row["bits"]) & (table["group_size"] == row["group_size"])
    plain = table[same & (table["method"] == "rounding")]
    if plain.empty or row["method"] == "rounding":
        return ""
    return f", where plain rounding loses {percent_worse(plain['delta_nll'].iloc[0]):.2f} %"
