"""Published throughput of CPUs: data/literature.csv, each row with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import FormatError

if TYPE_CHECKING:
    import pandas as pd

_FILE = Path(__file__).resolve().parents[2] / "data" / "literature.csv"
# Other tests are of the prompt, or of many sequences.
_DECODING = r"^(tg|eval|decode|gen|pp1$|sweep-bench TG|batched-bench B=1)"
_ISAS = {"aarch64": "aarch64", "x86-64": "x86_64"}
_SWEEP = ["chip", "isa", "model", "quant", "software"]
# Fewer counts say nothing of two unknowns that is held out.
_LEAST_COUNTS = 4


def read_literature(file: str | Path | None = None) -> pd.DataFrame:
    """Return the published rows as they stand in the file.

    Parameters
    ----------
    file : str or Path, optional
        Default: the repository's.

    Raises
    ------
    FormatError
        If it cannot be read, or a row has no source.
    """
    import pandas as pd

    file = _FILE if file is None else Path(file)
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{file.name} cannot be read: {error}. It lies in data/ of the repository, not in an "
            "installed package; give its path."
        ) from error
    bare = table.index[table["source"].isna()].tolist()
    if bare:
        raise FormatError(f"{file.name}: rows {[row + 2 for row in bare]} have no source.")
    return table


def published_rows(file: str | Path | None = None) -> pd.DataFrame:
    """Return published decoding speeds as rows of the table of throughput.

    Parameters
    ----------
    file : str or Path, optional

    Returns
    -------
    DataFrame
        As `throughput.ROW` names the columns; `gb_s` is file size times tokens a second where
        the size is known.
    """
    table = read_literature(file)
    table = table[table["tok_s"].notna() & table["test"].str.match(_DECODING, na=False)]
    named = table.assign(
        provenance="published",
        arch=table["isa"].str.split().str[0].map(_ISAS),
        bandwidth_gb_s=table["measured_GBps"],
        gb_s=table["file_GB"] * table["tok_s"],
        machine_id="",
    )
    renamed = named.rename(
        columns={"tok_s": "tok_per_s", "cores_or_threads": "threads", "isa": "isa_text"}
    )
    from awqbench.bench.throughput import ROW

    return renamed.assign(low=renamed["tok_per_s"], high=renamed["tok_per_s"])[
        list(ROW)
    ].reset_index(drop=True)


def published_sweeps(file: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """Return published sweeps of threads: one chip, model, quantization and program each.

    Returns
    -------
    dict of str to DataFrame
        By a name for tables; `threads`, `tok_per_s`, `file_gb` (NaN where it is not known),
        `arch` and `source`, in the order of threads.
    """
    table = read_literature(file)
    table = table[table["tok_s"].notna() & table["cores_or_threads"].notna()]
    found = {}
    for (chip, isa, _, _, software), rows in table.groupby(_SWEEP, sort=False):
        if rows["cores_or_threads"].nunique() < _LEAST_COUNTS:
            continue
        short = chip.split(" (")[0].split(",")[0]
        name = f"{short}, {isa.partition(' ')[2] or isa}, {software.split()[0]}"
        found[name] = (
            rows.rename(
                columns={"cores_or_threads": "threads", "tok_s": "tok_per_s", "file_GB": "file_gb"}
            )[["threads", "tok_per_s", "file_gb", "source"]]
            .assign(arch=_ISAS[isa.split()[0]])
            .astype({"threads": int})
            .sort_values("threads", ignore_index=True)
        )
    return found
