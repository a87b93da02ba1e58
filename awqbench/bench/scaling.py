"""Tables of what a run costs: its stages, predicted beside real, and what workers gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.sizes import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

# Stages of a prediction, by the stages that a run's clock tells apart.
PREDICTED_STAGES = {
    "read": "reading",
    "trace": "finding folds",
    "forward": "forward pass",
    "statistics": "statistics",
    "search": "search",
    "write": "writing",
    "spill": "writing",
}


def stage_table(
    times: Mapping[str, float], predicted: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Return the seconds of a run by stage, and what was predicted.

    Parameters
    ----------
    times : mapping of str to float
        ``record["times"]`` of a run: ``search_s`` and so on, and ``total_s``.
    predicted : mapping of str to float, optional
        ``Prediction.parts``.

    Returns
    -------
    DataFrame
        `stage`, `seconds`, `share` of the total, and `predicted_s`, NaN without a prediction
        and for what none is made for: the time that no stage counts, such as imports.
    """
    import pandas as pd

    seconds = dict.fromkeys([*PREDICTED_STAGES.values()], 0.0)
    for name, value in times.items():
        stage = PREDICTED_STAGES.get(name.removesuffix("_s"))
        if stage is not None:
            seconds[stage] += value
    seconds["other"] = max(times["total_s"] - sum(seconds.values()), 0.0)
    table = pd.DataFrame({"stage": seconds.keys(), "seconds": seconds.values()})
    table["share"] = table["seconds"] / times["total_s"]
    table["predicted_s"] = table["stage"].map(dict(predicted or {})).astype(float)
    return table


def best_rounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return of each model and number of workers the round that took the least in total.

    Parameters
    ----------
    rows : DataFrame
        As `benchmarks/workers.py` records them: `model`, `workers`, `total_s` and others.
    """
    least = rows.groupby(["model", "workers"], sort=False)["total_s"].idxmin()
    return rows.loc[least].sort_values(["model", "workers"], ignore_index=True)


def speedups(runs: pd.DataFrame, *, cores: int) -> pd.DataFrame:
    """Compare runs with workers to the run of one process, and to the most there is to gain.

    The text goes through the blocks one after another: with one worker in the process that
    leads, with several shared among them chunk by chunk. So no run is shorter than what the
    leading process does itself with the text's way beside it, than the workers' work shared by
    them, or than all of the work shared by the processors (Amdahl, Proc. AFIPS 1967).

    Parameters
    ----------
    runs : DataFrame
        `model`, `workers` (0 for one process), `total_s`, `search_s`, `forward_s`,
        `statistics_s`, one row each, and `chunks` of the text, 1 without.
    cores : int
        Processors that may be used.

    Returns
    -------
    DataFrame
        `model`, `workers`, `total_s`, `search_s`, `speedup`, `ceiling` (by those bounds), and
        `limit`, the ceiling with any number of workers and processors.
    """
    import pandas as pd

    tables = []
    for _, mine in runs.groupby("model", sort=False):
        alone = mine[mine["workers"] == 0].iloc[0]
        total, search = alone["total_s"], alone["search_s"]
        text = alone["forward_s"] + alone["statistics_s"]
        own = total - search - text
        chunks = alone.get("chunks", 1)  # older records are of texts that were not shared
        n = mine["workers"].to_numpy()
        shares = np.where(n > 1, np.minimum(n, chunks), 1)
        of_workers = search + np.where(shares > 1, text, 0.0)
        with np.errstate(divide="ignore"):
            least = np.maximum(own + text / shares, of_workers / n)
        least = np.where(n == 0, total, np.maximum(least, total / np.minimum(cores, n + 1)))
        table = mine[["model", "workers", "total_s", "search_s"]].copy()
        table["speedup"] = total / table["total_s"]
        table["ceiling"] = total / least
        table["limit"] = total / (own + text / chunks)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def large_run(records: Sequence[Mapping]) -> dict | None:
    """Return the newest measured run of the largest model, None without any.

    Parameters
    ----------
    records : sequence of mapping
        As `benchmarks/quantize_large.py` appends them, oldest first.
    """
    rows = [row for record in records for row in record["rows"]]
    if not rows:
        return None
    most = max(row["model_bytes"] for row in rows)
    return [row for row in rows if row["model_bytes"] == most][-1]


def describe_large(row: Mapping) -> str:
    """Say in one clause what a large run took: size, limit, peak, time, and what was predicted."""
    ratio = row["total_s"] / row["predicted_s"]
    gib = {key: row[f"{key}_bytes"] / GIB for key in ("model", "limit", "peak_anonymous")}
    return (
        f"{row['model']} ({gib['model']:.1f} GiB) was quantized under a limit of "
        f"{gib['limit']:.2g} GiB with a peak of {gib['peak_anonymous']:.2f} GiB in "
        f"{row['total_s'] / 60:.1f} minutes, {ratio:.2f} times the predicted "
        f"{row['predicted_s'] / 60:.1f}"
    )
