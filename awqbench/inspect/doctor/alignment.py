"""Which group sizes divide which linears, and over how many ranks each engine splits them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.config.limits import check_size
from awqbench.inspect.doctor.findings import CARE, NO, NOTE, Finding, listed, roles
from awqbench.inspect.parallel.engine_rules import ENGINES
from awqbench.inspect.parallel.plan import COLUMNS, plan_tensor_parallel
from awqbench.inspect.parallel.split_checks import CONFIG

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint

Linears = Mapping[str, tuple[int, int]]


def undivided(linears: Linears, group_size: int) -> dict[str, tuple[int, int]]:
    """Return the linears whose in_features a group size does not divide: K and remainder.

    Examples
    --------
    >>> undivided({"up": (96, 64), "down": (64, 96)}, 64)
    {'down': (96, 32)}
    """
    if group_size < 1:
        return {}
    return {
        name: (into, into % group_size) for name, (_, into) in linears.items() if into % group_size
    }


def alignment_findings(linears: Linears, group_sizes: Sequence[int]) -> Iterator[Finding]:
    """Say for each group size which linears stand in the way, and which size fits."""
    by_size = {size: undivided(linears, size) for size in group_sizes}
    fitting = [size for size, bad in by_size.items() if not bad]
    for size, bad in by_size.items():
        if not bad:
            continue
        places = [
            f"{role} ({count} times, in_features {_first(bad, role)})"
            for role, count in roles(bad).items()
        ]
        fix = f"use --group-size {max(fitting)}" if fitting else _other_size(linears)
        # The first size is the one that is wanted; others are offers.
        severity = NO if not fitting else CARE if size == group_sizes[0] else NOTE
        yield Finding(
            severity,
            "alignment",
            f"group size {size} does not divide {len(bad)} of {len(linears)} linears: "
            f"{listed(places)}",
            fix,
        )
    yield from _size_findings(linears)


def _first(bad: Mapping[str, tuple[int, int]], role: str) -> str:
    into, remainder = next(value for name, value in bad.items() if role in roles([name]))
    return f"{into}, remainder {remainder}"


def _other_size(linears: Linears) -> str:
    sizes = [size for size in (128, 64, 32, 16) if not undivided(linears, size)]
    if sizes:
        return f"use --group-size {sizes[0]}"
    return "pad the model (awqbench pad MODEL OUT), or use --group-size -1 for whole rows"


def _size_findings(linears: Linears) -> Iterator[Finding]:
    """Ask the AWQ layout's own limit: eight codes of neighbouring outputs share a word."""
    bad: dict[str, str] = {}
    for name, (out_features, in_features) in linears.items():
        try:
            check_size("awq-gemm", out_features, in_features, name=name)
        except AlignmentError as error:
            bad[name] = str(error)
    if bad:
        first = next(iter(bad.values())).rstrip(".")
        yield Finding(
            NO,
            "alignment",
            f"{len(bad)} of {len(linears)} linears do not fit the AWQ layout: {first}",
            "leave them as they are with --set modules_to_not_convert=NAME, or use another "
            "--layout",
        )


def split_table(
    ckpt: Checkpoint, tp_sizes: Sequence[int], group_sizes: Sequence[int]
) -> tuple[pd.DataFrame, str]:
    """Return the plan of every engine, or an empty one and why it cannot be made."""
    import pandas as pd

    try:
        return plan_tensor_parallel(ckpt, tp_sizes, group_sizes), ""
    except FormatError as error:
        return pd.DataFrame(columns=list(COLUMNS)), str(error).rstrip(".")


def split_findings(table: pd.DataFrame, problem: str, group_size: int) -> Iterator[Finding]:
    """Say over how many ranks the wanted group size does not split, engine by engine."""
    if problem:
        yield Finding(NOTE, "tensor parallel", f"no table can be made: {problem}")
        return
    wanted = table[(table["group_size"] == group_size) & ~table["fits"].astype(bool)]
    for engine, rows in wanted.groupby("engine", sort=False):
        # Every engine on one card would say the same thing five times.
        if engine == "vllm":
            of_model = rows["layer"] == CONFIG  # heads and vocabulary, which no padding mends
            for some in (rows[~of_model], rows[of_model]):
                if len(some):
                    yield _ranks_finding(some, group_size)
        else:
            alone = rows[rows["tp_size"] == 1]
            for row in alone.itertuples():
                yield Finding(
                    NOTE,
                    "engines",
                    f"{ENGINES[engine].version}, group size {group_size}, one rank: {row.layer}: "
                    f"{row.detail}",
                    row.fix,
                )


def _ranks_finding(rows: pd.DataFrame, group_size: int) -> Finding:
    # The fix for the most ranks serves fewer too.
    last = rows.loc[rows["tp_size"].idxmax()]
    ranks = ", ".join(str(size) for size in rows["tp_size"])
    place = "" if last.layer == CONFIG else f"{last.layer}: "
    return Finding(
        CARE,
        "tensor parallel",
        f"group size {group_size} does not split over {ranks} ranks in vLLM; at {last.tp_size}, "
        f"{place}{last.detail}",
        last.fix,
    )


def engine_limits(table: pd.DataFrame) -> dict[str, str]:
    """Return in words, for each engine, over how many ranks each group size splits."""
    found = {}
    for engine, rows in table.groupby("engine", sort=False):
        sizes = []
        for group_size, of_size in rows.groupby("group_size", sort=False):
            ranks = [str(row.tp_size) for row in of_size.itertuples() if row.fits]
            sizes.append(f"group {group_size}: tp {', '.join(ranks) or 'none'}")
        found[ENGINES[engine].version] = "; ".join(sizes)
    return found
