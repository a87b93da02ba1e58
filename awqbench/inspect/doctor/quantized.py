"""The card of a folder that is quantized already: what it is, and the ways out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.inspect.doctor.alignment import engine_limits, split_findings, split_table
from awqbench.inspect.doctor.findings import NO, NOTE, Finding, gigabytes, worst_first
from awqbench.inspect.doctor.report import DoctorReport
from awqbench.inspect.doctor.versions import transformers_versions, version_findings

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.formats.config.quantization import Quantization


def quantized_report(
    path: Path, ckpt: Checkpoint | None, found: Quantization, tp_sizes: Sequence[int]
) -> DoctorReport:
    """Refuse to quantize again, and say what can be done with the folder.

    Parameters
    ----------
    path : Path
    ckpt : Checkpoint or None
        None for files of another tool, such as GGUF.
    found : Quantization
    tp_sizes : sequence of int
        For the table of a folder that engines can split.
    """
    facts = _facts(path, ckpt, found)
    findings = [_already(found)]
    table, problem = _no_table(), ""
    if ckpt is not None:
        versions = transformers_versions(ckpt.config)
        facts["transformers"] = versions._asdict()
        facts["card"]["transformers"] = versions.describe()
        findings += version_findings(versions)
        if found.layout is not None and found.group_size:
            table, problem = split_table(ckpt, tp_sizes, (found.group_size,))
            as_notes = split_findings(table, problem, found.group_size)
            findings += [finding._replace(severity=NOTE) for finding in as_notes]
            facts["engines"] = engine_limits(table)
    sentence = f"{path.name} is already quantized ({found.summary()})"
    return DoctorReport("no", sentence, worst_first(findings), table, facts)


def _already(found: Quantization) -> Finding:
    if found.layout is None:
        return Finding(
            NO,
            "already quantized",
            f"{found.summary()}, which awqbench recognises and cannot read",
            found.advice,
        )
    return Finding(
        NO,
        "already quantized",
        f"{found.summary()}: quantizing again would add a second error on top of the first",
        "for other settings start from the original bf16 or fp16 folder; for another layout with "
        "the same numbers: awqbench convert MODEL OUT --layout ...; to use it as it is: "
        "awqbench.load_quantized(folder); to look through it: awqbench inspect MODEL",
    )


def _facts(path: Path, ckpt: Checkpoint | None, found: Quantization) -> dict[str, Any]:
    if ckpt is not None:
        from collections import Counter

        sizes = Counter()
        for info in ckpt.tensors.values():
            sizes[info.dtype] += info.nbytes
        nbytes, dtypes = ckpt.nbytes, dict(sizes)
    else:
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        nbytes, dtypes = sum(file.stat().st_size for file in files), {}
    quantization = {k: getattr(found, k) for k in ("method", "bits", "group_size", "layout")}
    card = {"size": gigabytes(nbytes), "quantization": found.summary()}
    if dtypes:
        shares = ", ".join(f"{name} {size / max(nbytes, 1):.0%}" for name, size in dtypes.items())
        card["size"] += f" ({shares})"
    return {
        "name": path.name,
        "weight_bytes": nbytes,
        "dtypes": dtypes,
        "quantization": quantization,
        "card": card,
    }


def _no_table():
    import pandas as pd

    from awqbench.inspect.parallel.plan import COLUMNS

    return pd.DataFrame(columns=list(COLUMNS))
