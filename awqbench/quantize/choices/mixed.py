"""A site whose linears have rules of their own: one set of scales, and each its own rounding.

Linears that read the same input share its channel scales, whatever their bits. The scales are
those that serve the linears of fewest bits best, which lose by far the most; ranges and codes
follow each linear's own settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.quantize.choices.site import choose_site, round_site

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.choices.scales import ScaleChoice
    from awqbench.quantize.choices.site import RoundedLinear, SiteChoice
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.moments import SiteMoments


def choose_linears(
    site: Site,
    moments: SiteMoments,
    weights: dict[str, torch.Tensor],
    settings: Settings,
    *,
    block: str,
    scales: ScaleChoice | None = None,
) -> SiteChoice:
    """Choose channel scales and ranges for the linears of a site, each by its own rule.

    Parameters and errors are those of `choose_site`, with the path of the block in place of
    the site's name.
    """
    choice = None
    for own, paths in _by_settings(settings, block, weights).items():
        found = choose_site(
            site,
            moments,
            {path: weights[path] for path in paths},
            own,
            name=f"{block}.{site.name}",
            scales=scales if choice is None else choice.scales,
        )
        choice = found if choice is None else choice._replace(clips=choice.clips | found.clips)
    return choice


def round_linears(
    choice: SiteChoice,
    moments: SiteMoments,
    weights: dict[str, torch.Tensor],
    settings: Settings,
    *,
    name: str,
) -> dict[str, RoundedLinear]:
    """Round the linears of a site as chosen, each by its own rule; otherwise as `round_site`."""
    rounded: dict[str, RoundedLinear] = {}
    for own, paths in _by_settings(settings, name, weights).items():
        mine = {path: weights[path] for path in paths}
        rounded |= round_site(choice, moments, mine, own, name=name)
    return {path: rounded[path] for path in weights}


def _by_settings(settings: Settings, block: str, weights: dict) -> dict[Settings, list[str]]:
    found = settings.by_settings(f"{block}.{path}" for path in weights)
    return {own: [name.removeprefix(f"{block}.") for name in names] for own, names in found.items()}
