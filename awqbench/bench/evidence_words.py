"""What the evidence of x86 and ARM amounts to: counts by kind, and the answer in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from awqbench.bench.record.check import Record
from awqbench.bench.throughput import PROVENANCES, coverage, evidence_title

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"x86_64": "x86", "aarch64": "ARM"}
_TIMED = PROVENANCES[:2]
_SPEEDS, _KERNELS, _RESULTS = "tokens/s", "kernels and memory", "results"


def coverage_by_figure(
    table: pd.DataFrame, records: Sequence[Record], emulated: int = 0
) -> pd.DataFrame:
    """Count by what the figures are of, architecture and provenance.

    Parameters
    ----------
    table : DataFrame
        Of `evidence.gather`.
    records : sequence of dict
        Of machines.
    emulated : int
        Results that were computed on emulated ARM processors.

    Returns
    -------
    DataFrame
        A row for x86_64 and aarch64 of tokens a second, of kernels and memory, and of results,
        which are compared and have no time.
    """
    import pandas as pd

    kernels = [
        (record["machine"]["arch"], record["provenance"])
        for record in records
        if record["case"]["kernel"] != "decode" and record["provenance"] != "emulated"
    ]
    results = [("aarch64", "emulated")] * emulated
    columns = ["arch", "provenance"]
    counts = {
        _SPEEDS: coverage(table),
        _KERNELS: coverage(pd.DataFrame(kernels, columns=columns)),
        _RESULTS: coverage(pd.DataFrame(results, columns=columns)),
    }
    return pd.concat(counts, names=["figures", "arch"])


def digest_counts(digests: pd.DataFrame) -> tuple[int, int]:
    """Return how many emulated results had to be the same bits, and how many were."""
    exact = digests[digests["same_bits"].notna()]
    return int(exact["results"].sum()), int(exact["same_bits"].sum())


def describe(
    table: pd.DataFrame,
    shares: pd.DataFrame,
    digests: pd.DataFrame,
    semantics: pd.DataFrame,
    *,
    isa_filter: Sequence[str] = (),
) -> str:
    """Say in a sentence what is known, with its numbers, and what was not measured.

    Parameters
    ----------
    table : DataFrame
        Of `evidence.gather`.
    shares : DataFrame
        Of `evidence.per_bandwidth`.
    digests, semantics : DataFrame
        Of `evidence_records.read_evidence`; may be empty.
    isa_filter : sequence of str
        Architectures that were kept, as `evidence.gather` took it: of others nothing is said to
        be missing.
    """
    parts = [text for text in (_timed_text(table), _predicted_text(table)) if text]
    published = shares[(shares["provenance"] == "published") & (shares["arch"] == "aarch64")]
    if len(published):
        low, high = published["per_gb_s"].min(), published["per_gb_s"].max()
        parts.append(
            f"published ARM speeds, {len(published)} with a known bandwidth, use {low:.0%} to "
            f"{high:.0%} of it (of the nominal one where none was measured)"
        )
    must, same = digest_counts(digests)
    if must:
        parts.append(f"{same} of {must} emulated ARM results are bit for bit those of x86")
    if len(semantics):
        parts.append(f"{int((~semantics['is_same'].astype(bool)).sum())} conversions and functions "
                     f"of {len(semantics)} differ")  # fmt: skip
    missing = [
        f"0 times were measured on {name}"
        for arch, name in _NAMES.items()
        if arch in (isa_filter or _NAMES)
        and not ((table["arch"] == arch) & table["provenance"].isin(_TIMED)).any()
    ]
    return f"{evidence_title(table)}: {'; '.join([*parts, *missing])}."


def _timed_text(table: pd.DataFrame) -> str:
    timed = table[table["provenance"].isin(_TIMED)]
    return "" if timed.empty else _fastest(timed)


def _predicted_text(table: pd.DataFrame) -> str:
    """Say what is predicted of an architecture on which this model was not timed."""
    texts = []
    for _, rows in table.groupby("arch", sort=False):
        timed = rows.loc[rows["provenance"].isin(_TIMED), "model"]
        predicted = rows[(rows["provenance"] == "predicted") & ~rows["model"].isin(timed)]
        texts += [] if predicted.empty else [_fastest(predicted)]
    return "; ".join(texts)


def _fastest(rows: pd.DataFrame) -> str:
    """Say which of some rows is the fastest, of the model that takes longest."""
    largest = rows[rows["model"] == rows.loc[rows["tok_per_s"].idxmin(), "model"]]
    row: Any = largest.loc[largest["tok_per_s"].idxmax()]
    span = f" ({row.low:.3g} to {row.high:.3g})" if row.provenance == "predicted" else ""
    threads = f"{int(row.threads)} thread{'s' if row.threads > 1 else ''}"
    return (
        f"{row.model} {row.quant} {row.provenance} at {row.tok_per_s:.3g}{span} tokens/s on "
        f"{row.chip}, {threads}"
    )
