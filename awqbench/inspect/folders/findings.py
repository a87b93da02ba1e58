"""What an x-ray's figures mean: sentences with numbers and places, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

BAD, WARNING, NOTE = "bad", "warning", "note"
_RANK = {BAD: 0, WARNING: 1, NOTE: 2}
# Rounding by range puts a zero point at a limit only where a group has one sign: rare in
# trained weights with groups of 32 and more.
_MANY_AT_LIMITS = 0.01
_HEALTHY = "every scale is a normal number and every group holds more than its zero point"


class Finding(NamedTuple):
    """One sentence about a folder; `level` is ``"bad"``, ``"warning"`` or ``"note"``.

    Bad means that the model computes nonsense or cannot be read; a warning, that numbers
    are lost or rules are unusual; a note is a fact to know.
    """

    level: str
    sentence: str

    def __str__(self) -> str:
        """Write the finding on one line."""
        return f"{self.level}: {self.sentence}"


def findings_of(
    linears: pd.DataFrame, unread: dict[str, str], skipped: tuple[str, ...]
) -> tuple[Finding, ...]:
    """Judge the figures of a quantized folder.

    Parameters
    ----------
    linears : DataFrame
        With the columns of `packed_figures.COLUMNS`.
    unread : dict of str to str
        Why a linear could not be read, by its name.
    skipped : tuple of str
        Linears in full precision.

    Returns
    -------
    tuple of Finding
        Worst first.
    """
    found = [
        Finding(BAD, f"{name} cannot be read: {reason}")
        for name, reason in list(unread.items())[:3]
    ]
    if len(unread) > 3:
        found.append(Finding(BAD, f"{len(unread) - 3} more linears cannot be read"))
    scanned = linears[linears["levels_used"].notna()]
    if len(scanned):
        found += [*_scale_findings(scanned), *_code_findings(scanned)]
        if all(finding.level == NOTE for finding in found):
            found.insert(0, Finding(NOTE, f"nothing wrong in {_many(scanned)}: {_HEALTHY}"))
    found += _scheme_findings(linears, skipped)
    return tuple(sorted(found, key=lambda finding: _RANK[finding.level]))


def _scale_findings(linears: pd.DataFrame) -> Iterator[Finding]:
    bad = linears[linears["nonfinite_scales"] > 0]
    if len(bad):
        first = bad.iloc[0]
        yield Finding(
            BAD,
            f"{_of(bad, 'nonfinite_scales', linears)} scales are NaN or infinite, in {_many(bad)}; "
            f"first {first['name']}, {first['nonfinite_at']}: every output of that row is NaN or "
            "infinite. Quantize the original weights again",
        )
    zero = linears[linears["zero_scales"] > 0]
    if len(zero):
        yield Finding(
            WARNING,
            f"{_of(zero, 'zero_scales', linears)} scales are 0, so that their groups decode to 0, "
            f"in {_many(zero)}; most in {_worst(zero, 'zero_scales')}",
        )
    small = linears[linears["subnormal_scales"] > 0]
    if len(small):
        dtypes = " and ".join(sorted(set(small["scale_dtype"])))
        yield Finding(
            WARNING,
            f"{_of(small, 'subnormal_scales', linears)} scales are subnormal in {dtypes}, with "
            f"fewer bits than others, in {_many(small)}; most in "
            f"{_worst(small, 'subnormal_scales')}",
        )


def _code_findings(linears: pd.DataFrame) -> Iterator[Finding]:
    gone = linears[linears["dead_groups"] == linears["groups"]]
    if len(gone):
        yield Finding(
            BAD, f"all weights of {_many(gone)} decode to 0, such as {gone['name'].iloc[0]}"
        )
    dead = linears[linears["dead_groups"].between(1, linears["groups"] - 1)]
    if len(dead):
        yield Finding(
            WARNING,
            f"{_of(dead, 'dead_groups', linears, 'groups')} groups are dead: every code equals the "
            f"zero point and every weight is 0, in {_many(dead)}; most in "
            f"{_worst(dead, 'dead_groups')}",
        )
    # Short of codes a linear leaves levels unused by chance.
    enough = linears["out_features"] * linears["in_features"] >= 64 * 2 ** linears["bits"]
    wasted = linears[(linears["wasted_levels"] > 0) & enough]
    if len(wasted):
        worst = wasted.loc[wasted["wasted_levels"].idxmax()]
        yield Finding(
            NOTE,
            f"{_many(wasted)} of {len(linears)} leave levels of their grid unused; most "
            f"{worst['name']}, {worst['wasted_levels']} of {1 << int(worst['bits'])}",
        )
    varying = linears[linears["zero_point"].astype("boolean").fillna(False)]
    share = varying["zeros_at_limits"].sum() / max(int(varying["groups"].sum()), 1)
    if share >= _MANY_AT_LIMITS:
        yield Finding(
            NOTE,
            f"{share:.1%} of the zero points are at a limit of their range: weights of those "
            f"groups have one sign; most in {_worst(varying, 'zeros_at_limits')}",
        )


def _scheme_findings(linears: pd.DataFrame, skipped: tuple[str, ...]) -> Iterator[Finding]:
    ordered = linears[linears["act_order"].astype("boolean").fillna(False)]
    if len(ordered):
        yield Finding(
            NOTE,
            f"{_many(ordered)} {'is' if len(ordered) == 1 else 'are'} in activation order "
            "(act-order), which only the GPTQ layouts hold",
        )
    bits = sorted(set(linears["bits"].dropna()))
    if len(bits) > 1:
        counts = ", ".join(f"{(linears['bits'] == b).sum()} of {b} bits" for b in bits)
        yield Finding(NOTE, f"linears have several widths: {counts}")
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        yield Finding(NOTE, f"in full precision: {', '.join(skipped[:3])}{more}")


def _of(rows: pd.DataFrame, column: str, linears: pd.DataFrame, total: str = "groups") -> str:
    count, all_ = int(rows[column].sum()), int(linears[total].sum())
    return f"{count:,} of {all_:,}"


def _many(rows: pd.DataFrame) -> str:
    return f"{len(rows)} linear{'s' if len(rows) != 1 else ''}"


def _worst(rows: pd.DataFrame, column: str) -> str:
    worst = rows.loc[(rows[column] / rows["groups"]).astype(float).idxmax()]
    return f"{worst['name']} ({worst[column]:,} of {worst['groups']:,})"
