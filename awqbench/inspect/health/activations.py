"""Room of the activations, from calibration statistics: which sites are safe in float16."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.inspect.health.patterns import SHORT_NAMES
from awqbench.numerics import LIMITS

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.quantize.statistics.moments import SiteMoments
    from awqbench.quantize.statistics.stats import Stats

# Worst last. "would clamp here": a few channels reach the limit, so that float16 with a clamp
# at this site changes them alone; "bf16 only": so many do that a clamp would change the site.
VERDICTS = ("safe in fp16", "would clamp here", "bf16 only", "too large for bf16")
# Another text, or a linear's output, can be so many times larger than what was seen.
MARGIN = 2.0
# As many channels count as a few: massive activations live in one to four.
FEW_CHANNELS, FEW_SHARE = 4, 0.01
# A channel stands out if its largest activation is so many times the median channel's.
OUTLIER_RATIO = 20.0


def activation_health(stats: Stats | str | Path) -> pd.DataFrame:
    """Read from calibration statistics how much room the activations have.

    These are inputs of linears. A linear's output, and the sum of a block, can be larger:
    where they overflow, the next site's inputs are not finite.

    Parameters
    ----------
    stats : Stats or str or Path
        As `calibrate` gives them.

    Returns
    -------
    DataFrame
        A row for each site of each block: `block`, `site` (path of its first linear),
        `linears`, `tokens`, `absmax`, `headroom_f16` and `headroom_bf16` (the dtype's
        largest number over absmax), `outlier_ratio` (largest channel mean over the median
        one), `nonfinite_tokens` (in which some channel is NaN or infinite),
        `outlier_channels` (whose absmax is over `OUTLIER_RATIO` times the median channel's),
        `tight_channels` (that were not finite or, `MARGIN` times larger, would not be in
        float16), and `verdict`, one of `VERDICTS`.

    Raises
    ------
    StatisticsError
        If the statistics are damaged.
    """
    import pandas as pd

    from awqbench.quantize.statistics.stats import load_stats

    stats = load_stats(stats)
    rows = [
        {"block": i, "site": site.name, "linears": ", ".join(site.linears)} | _figures(moments)
        for i in range(stats.n_blocks)
        for site, moments in stats.block(i)
    ]
    return pd.DataFrame(rows)


def layer_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Give each block the verdict of its worst site.

    Parameters
    ----------
    table : DataFrame
        As `activation_health` gives it.

    Returns
    -------
    DataFrame
        A row for each block: `block`, `verdict`, `site` (that decides), `absmax`,
        `headroom_f16`, `tight_channels`, of that site.
    """
    rank = table["verdict"].map(VERDICTS.index)
    # Where verdicts are equal the site with less room decides; one without finite room first.
    ordered = table.assign(_rank=-rank, _room=table["headroom_f16"].fillna(0.0))
    worst = ordered.sort_values(["block", "_rank", "_room"], kind="stable").groupby("block").head(1)
    columns = ["block", "verdict", "site", "absmax", "headroom_f16", "tight_channels"]
    return worst[columns].reset_index(drop=True)


def _figures(moments: SiteMoments) -> dict[str, Any]:
    absmax = float(moments.absmax.max())
    means = moments.mean_abs()
    median, middle = float(means.median()), float(moments.absmax.median())
    seen = moments.n_tokens > 0
    row: dict[str, Any] = {
        "tokens": moments.n_tokens + moments.masked_tokens,
        "absmax": absmax if seen else math.nan,
    }
    for dtype in ("float16", "bfloat16"):
        room = LIMITS[dtype].largest / absmax if seen and absmax else math.nan
        row[f"headroom_{SHORT_NAMES[dtype]}"] = room
    row["outlier_ratio"] = float(means.max()) / median if median else math.nan
    row["nonfinite_tokens"] = moments.masked_tokens
    row["outlier_channels"] = int((moments.absmax > OUTLIER_RATIO * middle).sum()) if middle else 0
    row["tight_channels"] = int(_tight(moments, "float16").sum())
    return row | {"verdict": _verdict(moments, row["tight_channels"])}


def _tight(moments: SiteMoments, dtype: str):
    return (moments.nonfinite > 0) | (moments.absmax > LIMITS[dtype].largest / MARGIN)


def _verdict(moments: SiteMoments, tight: int) -> str:
    if float(moments.absmax.max()) > LIMITS["bfloat16"].largest / MARGIN:
        return VERDICTS[3]
    if tight == 0:
        return VERDICTS[0]
    if tight <= max(FEW_CHANNELS, FEW_SHARE * moments.in_features):
        return VERDICTS[1]
    return VERDICTS[2]
