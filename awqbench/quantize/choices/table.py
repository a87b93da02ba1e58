"""Tables of a search: a row for each linear, a curve for each site, alarms in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.quantize.folds.experts import expert_of
from awqbench.quantize.statistics.experts import is_starved

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.quantize.choices.site import LinearError, RoundedLinear, SiteChoice
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.statistics.moments import SiteMoments

# What makes a choice suspicious. Scales over this range leave little of float16's.
_WIDE_SCALES = 1e3
# Output error, as a share of the output's energy, at which a linear is badly hurt.
_LARGE_ERROR = 0.1
# A loss this much above plain rounding's means that the search did harm.
_WORSE = 1.02


def linear_row(
    site: Site,
    path: str,
    choice: SiteChoice,
    rounded: RoundedLinear,
    error: LinearError,
) -> dict:
    """Return the table row of one linear."""
    scales = choice.channel_scales
    clip = choice.clips.get(path)
    return {
        "linear": path,
        "site": site.name,
        "bits": rounded.packed.bits,
        "group_size": rounded.packed.group_size,
        "prev_op": site.prev_op or "",
        "alpha": np.nan if choice.scales is None else choice.scales.alpha,
        "output_error": error.output_error,
        "rounding_error": error.rounding_error,
        "gain": 1 - error.output_error / error.rounding_error if error.rounding_error else 0.0,
        "scale_range": float(scales.max() / scales.min()),
        "clip_gain": 0.0
        if clip is None or clip.loss_before == 0
        else 1 - clip.loss_after / clip.loss_before,
        "clipped_groups": 0.0 if clip is None else float((clip.shrink < 1).float().mean()),
        "masked_channels": choice.masked_channels,
        "flushed_groups": rounded.flushed_groups,
    }


def curve_rows(site: Site, choice: SiteChoice) -> list[dict]:
    """Return the points of a site's alpha curve; alpha is NaN for no scaling.

    The curve of sites that share their scales is that of the first of them.
    """
    if choice.scales is None or site.shares not in ("", site.name):
        return []
    return [
        {"site": site.name, "alpha": float(alpha), "loss": float(loss)}
        for alpha, loss in zip(choice.scales.alphas, choice.scales.losses, strict=True)
    ]


def alarms(row: dict, site: Site, choice: SiteChoice, moments: SiteMoments) -> str:
    """Return what is suspicious about a linear's quantization, in words, or ``""``."""
    found = []
    if choice.is_plain and is_starved(site, moments):
        found.append(
            f"rounded plainly: {moments.n_tokens} calibration tokens reached expert "
            f"{expert_of(site.name)}, which has {site.in_features} channels here"
        )
    elif choice.is_plain:
        found.append("rounded plainly: statistics are not finite or there are none")
    elif choice.masked_channels:
        found.append(f"{choice.masked_channels} channels with NaN or inf left unscaled")
    if moments.n_tokens < site.in_features and not choice.is_plain:
        found.append(f"{moments.n_tokens} calibration tokens for {site.in_features} channels")
    if row["scale_range"] > _WIDE_SCALES:
        found.append(f"channel scales span {row['scale_range']:.3g}")
    if choice.scales is not None and row["alpha"] == choice.scales.alphas[-1]:
        found.append(f"alpha {row['alpha']:g} is the end of its grid")
    if choice.scales is not None and np.isinf(choice.scales.losses).any():
        count = int(np.isinf(choice.scales.losses).sum())
        found.append(f"{count} candidates of alpha gave a loss that is not finite")
    if row["output_error"] > _LARGE_ERROR:
        found.append(f"output error {row['output_error']:.0%} of the output")
    if row["output_error"] > _WORSE * row["rounding_error"]:
        found.append("worse than plain rounding")
    if row["flushed_groups"]:
        found.append(f"{row['flushed_groups']} groups too small for float16 scales, stored as 0")
    return "; ".join(found)


def as_frame(rows: list[dict]) -> pd.DataFrame:
    """Return rows as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(rows)
