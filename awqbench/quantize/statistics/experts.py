"""Which experts of a mixture a calibration text reaches, and what becomes of those it does not.

A token goes to few experts, and some experts see hardly any of a text. Their statistics then
say little: H of n tokens has rank n, so errors in the other K - n directions of the input cost
nothing in the search and everything in use. `is_starved` says where that does harm; such
linears are rounded plainly, by their weights alone, and the table says so. The other cure is to
calibrate with every token sent through every expert for the statistics, while the model's own
output stays as routed: `awqbench.model_experts.every_expert`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from awqbench.quantize.folds.experts import expert_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from awqbench.quantize.folds.apply import Site
    from awqbench.quantize.statistics.moments import SiteMoments
    from awqbench.quantize.statistics.stats import Stats

COLUMNS = ("block", "expert", "tokens", "share", "expected_share", "starved")
# Tokens, as a share of the input channels K, below which H is not searched. Measured on the
# linears of the embedded model (K = 256 and 896): the output error on other text after scales
# and clip were chosen from n tokens, over that of plain rounding, was 3.1, 1.8, 1.16, 0.92,
# 0.82 for n = 1, 2, 4, 8, 16 and 0.70 for n = 256. A rank far below K does no harm, since
# neighbouring channels share scale and range; a handful of tokens does. For GPTQ alone it was
# 0.75 to 0.87 for all of them: its damping takes the place of the missing rank.
STARVED_BELOW = 1 / 16
# Statistics of one block's experts above this are kept as sketches. Exact, 128 experts of
# 2048 x 768 take 2.4 GB, of which gate and up 2.1: with 512 rows they take 0.7.
EXPERTS_BYTES = 1 << 30
_LEAST_ROWS = 512


def is_starved(site: Site, moments: SiteMoments) -> bool:
    """Tell whether an expert saw too few tokens for its statistics to be trusted."""
    return expert_of(site.name) is not None and moments.n_tokens < least_tokens(site.in_features)


def least_tokens(in_features: int) -> int:
    """Return how many tokens an expert's linear of so many input channels needs."""
    return math.ceil(STARVED_BELOW * in_features)


def expert_coverage(stats: Stats | str | Path) -> pd.DataFrame:
    """Count the calibration tokens that each expert of each block was given.

    Parameters
    ----------
    stats : Stats or str or Path
        Statistics by `calibrate`, with the real routing: with every token sent through every
        expert all counts are equal.

    Returns
    -------
    DataFrame
        One row for each expert: block (module path), expert, tokens, share (of the block's
        visits), expected_share (of even routing), starved (fewer than
        `least_tokens` of one of its linears). Empty for a model without experts.

    Raises
    ------
    StatisticsError
        If the statistics cannot be read.
    """
    from awqbench.quantize.statistics.stats import load_stats

    stats = load_stats(stats)
    visits = []
    for i in range(stats.n_blocks):
        visits += [(stats.block_name(i), *visit) for visit in _visits(stats.path, i)]
    return _coverage(visits)


def coverage_of_run(linears: Iterable[dict]) -> pd.DataFrame:
    """Return the coverage, as `expert_coverage` does, from the table of a run's linears.

    Parameters
    ----------
    linears : iterable of dict
        ``record["linears"]``: rows with block, linear, tokens and in_features.
    """
    return _coverage(
        (row["block"], expert_of(row["linear"]), row["tokens"], row["in_features"])
        for row in linears
        if expert_of(row["linear"]) is not None
    )


def coverage_lines(coverage: pd.DataFrame) -> list[str]:
    """Say which experts are starved, one line for each block that has any.

    Returns
    -------
    list of str
        Ends with what can be done; empty if no expert is starved.
    """
    starved = coverage[coverage.starved]
    lines = []
    for block, rows in starved.groupby("block", sort=False):
        shown = ", ".join(f"{r.expert} ({r.tokens})" for r in rows.head(8).itertuples())
        more = f", and {len(rows) - 8} more" if len(rows) > 8 else ""
        lines.append(f"{block}: experts with too few calibration tokens: {shown}{more}")
    if lines:
        lines.append(
            f"{len(starved)} of {len(coverage)} experts: rounded plainly. Give a longer text, or "
            "calibrate with every token sent through every expert (route_all_experts)."
        )
    return lines


def experts_record(linears: Iterable[dict]) -> dict:
    """Return what a run record says of experts: their coverage and the starved ones' names.

    Returns
    -------
    dict
        ``{"experts": {"coverage": rows, "starved": names}}``; empty without experts.
    """
    coverage = coverage_of_run(linears)
    if coverage.empty:
        return {}
    starved = coverage[coverage.starved]
    names = [f"{row.block} expert {row.expert}" for row in starved.itertuples()]
    return {
        "experts": {"coverage": json.loads(coverage.to_json(orient="records")), "starved": names}
    }


def sketch_rows(widths: Mapping[str, int], rows: int) -> dict[str, int | None]:
    """Say how many rows of a sketch stand for H of each input of a block, None for H itself.

    Where H of all experts together is over 1 GiB, those of the wide ones are sketched. Sketches
    of 512 rows chose what exact statistics chose for K to 3072.

    Parameters
    ----------
    widths : mapping of str to int
        K by the name of a site, or of its first linear; all sites of a block.
    rows : int
        Most rows that a sketch has.
    """
    experts = {name: k for name, k in widths.items() if expert_of(name) is not None}
    found: dict[str, int | None] = dict.fromkeys(widths)
    if 4 * sum(k * k for k in experts.values()) > EXPERTS_BYTES:
        for name, k in experts.items():
            wanted = min(rows, max(_LEAST_ROWS, k // 4))
            found[name] = wanted if 2 * wanted <= k else None
    return found


def _visits(folder: Path, i: int) -> Iterator[tuple[int, int, int]]:
    """Give expert, tokens and input channels of the sites in a block's file; reads no H."""
    from safetensors import SafetensorError, safe_open

    from awqbench.errors import StatisticsError
    from awqbench.quantize.statistics.stats import block_file

    path = folder / block_file(i)
    try:
        with safe_open(path, framework="pt") as file:
            for index, fields in enumerate(json.loads(file.metadata()["sites"])):
                expert = expert_of(fields["name"])
                if expert is not None:
                    tokens = int(file.get_tensor(f"{index}/counts")[0])
                    yield expert, tokens, fields["in_features"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StatisticsError(
            f"{path.name} of the statistics cannot be read ({error}); calibrate again."
        ) from error


def _coverage(visits: Iterable[tuple[str, int, int, int]]) -> pd.DataFrame:
    """Make the table from block, expert, tokens and input channels of experts' linears."""
    import pandas as pd

    frame = pd.DataFrame(visits, columns=["block", "expert", "tokens", "in_features"])
    frame["starved"] = frame.tokens < frame.in_features.map(least_tokens)
    table = frame.groupby(["block", "expert"], sort=False, as_index=False).agg(
        tokens=("tokens", "max"), starved=("starved", "any")
    )
    blocks = table.groupby("block", sort=False)
    visited = blocks.tokens.transform("sum")
    table["share"] = (table.tokens / visited.where(visited > 0)).fillna(0.0)
    table["expected_share"] = 1 / blocks.expert.transform("size")
    return table[list(COLUMNS)]
