"""Every verdict on one card, from headers: `doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.errors import AwqbenchError, ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.config.foreign import foreign_by_files
from awqbench.inspect.doctor.alignment import (
    alignment_findings,
    engine_limits,
    split_findings,
    split_table,
    undivided,
)
from awqbench.inspect.doctor.architecture import Anatomy, anatomy_of, architecture_findings
from awqbench.inspect.doctor.findings import CARE, NO, Finding, gigabytes, worst_first
from awqbench.inspect.doctor.numbers import activation_findings, health_summary, weight_findings
from awqbench.inspect.doctor.quantized import quantized_report
from awqbench.inspect.doctor.report import DoctorReport
from awqbench.inspect.doctor.resources import (
    N_SAMPLES,
    SEQ_LEN,
    needs_of,
    resource_findings,
    room_here,
)
from awqbench.inspect.doctor.versions import transformers_versions, version_findings

if TYPE_CHECKING:
    from awqbench.quantize.statistics.stats import Stats


def doctor(
    ckpt: Checkpoint | str | Path,
    tp_sizes: Sequence[int] = (1, 2, 4, 8),
    group_sizes: Sequence[int] = (128, 64, 32),
    *,
    scan: bool = True,
    timing: bool = False,
    stats: Stats | str | Path | None = None,
) -> DoctorReport:
    """Say whether a model can be quantized here, and what will be in the way afterwards.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A model folder, a hub id, or a file of another tool, such as GGUF.
    tp_sizes, group_sizes : sequence of int
        Numbers of ranks, and input channels that share a scale; the first group size is the
        one that is wanted, the others are offered where it does not fit.
    scan : bool
        Read every weight and look at its numbers; False looks at headers only.
    timing : bool
        Time one block for an estimate of the whole run: takes seconds, minutes at 70 billion
        parameters, and the memory of the run itself.
    stats : Stats or str or Path, optional
        Calibration statistics, for the room of the activations.

    Returns
    -------
    DoctorReport

    Raises
    ------
    FormatError
        If there is no such folder, it is damaged, or its weights are pickles.
    ParameterError
        If a size is not positive.
    StatisticsError
        If `stats` are damaged, or of another model.
    """
    tp_sizes, group_sizes = _checked(tp_sizes, "tp_sizes"), _checked(group_sizes, "group_sizes")
    if not isinstance(ckpt, Checkpoint):
        path = Path(ckpt).expanduser()
        found = foreign_by_files(path)
        if found is not None:
            return quantized_report(path, None, found, tp_sizes)
    ckpt = open_checkpoint(ckpt)
    if ckpt.quantization is not None:
        return quantized_report(ckpt.path, ckpt, ckpt.quantization, tp_sizes)
    anatomy = anatomy_of(ckpt)
    versions = transformers_versions(ckpt.config)
    table, problem = split_table(ckpt, tp_sizes, group_sizes)
    group_size = _fitting(anatomy, group_sizes)
    findings = [
        *architecture_findings(ckpt, anatomy),
        *alignment_findings(anatomy.linears, group_sizes),
        *split_findings(table, problem, group_sizes[0]),
        *version_findings(versions),
    ]
    facts = base_facts(ckpt)
    facts["card"] |= {"architecture": anatomy.describe(ckpt), "transformers": versions.describe()}
    facts["linears"] = len(anatomy.linears)
    facts["transformers"] = versions._asdict()
    facts["undivided"] = {str(size): len(undivided(anatomy.linears, size)) for size in group_sizes}
    facts["engines"] = engine_limits(table)
    if anatomy.runner is not None and anatomy.linears:
        findings += _add_resources(ckpt, anatomy, group_size, facts)
        _add_prediction(ckpt, anatomy, group_size, facts)
    health = None
    if scan:
        health, more = _scanned(ckpt, group_size, facts)
        findings += more
    if stats is not None:
        findings += _activations(ckpt, stats, facts)
    # What cannot run, or would not fit into memory, is not timed.
    if timing and not any(finding.severity == NO for finding in findings):
        _add_time(anatomy, group_size, facts)
    findings = worst_first(findings)
    return DoctorReport(
        *_verdict(ckpt, findings, anatomy, group_size), findings, table, facts, health
    )


def _checked(sizes: Sequence[int], name: str) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ParameterError(f"{name} is {list(sizes)}; give whole numbers of 1 or more.")
    return sizes


def _fitting(anatomy: Anatomy, group_sizes: Sequence[int]) -> int:
    """Return the first group size that divides every linear, or the one that is wanted."""
    fitting = (size for size in group_sizes if not undivided(anatomy.linears, size))
    return next(fitting, group_sizes[0])


def base_facts(ckpt: Checkpoint) -> dict[str, Any]:
    """Return what headers say of size and dtype."""
    sizes = Counter()
    for info in ckpt.tensors.values():
        sizes[info.dtype] += info.nbytes
    parameters = sum(info.size for info in ckpt.tensors.values())
    dtypes = ", ".join(
        f"{name} {size / max(ckpt.nbytes, 1):.0%}" for name, size in sizes.most_common()
    )
    return {
        "name": ckpt.path.name,
        "parameters": parameters,
        "weight_bytes": ckpt.nbytes,
        "dtypes": dict(sizes),
        "card": {
            "size": f"{parameters / 1e6:,.1f} million parameters, {gigabytes(ckpt.nbytes)} "
            f"({dtypes}), {len(ckpt.tensors)} tensors"
        },
    }


def _add_resources(
    ckpt: Checkpoint, anatomy: Anatomy, group_size: int, facts: dict[str, Any]
) -> list[Finding]:
    needs, room = needs_of(ckpt, anatomy, group_size), room_here(Path.cwd())
    facts["memory"] = {"needed_bytes": needs.memory, "free_bytes": room.memory_bytes}
    facts["disk"] = {"needed_bytes": needs.disk, "free_bytes": room.disk_bytes}
    parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in needs.disk.items())
    facts["card"] |= {
        "memory": f"about {gigabytes(needs.memory_bytes)} at its peak ({needs.largest_stage}), "
        f"{gigabytes(room.memory_bytes)} free",
        "disk": f"about {gigabytes(needs.disk_bytes)} ({parts}), {gigabytes(room.disk_bytes)} "
        "free here",
    }
    return list(resource_findings(needs, room))


def _add_prediction(
    ckpt: Checkpoint, anatomy: Anatomy, group_size: int, facts: dict[str, Any]
) -> None:
    from awqbench.inspect.doctor.prediction import predict_seconds
    from awqbench.quantize.search import make_settings

    settings = make_settings(None, group_size=group_size)
    found = predict_seconds(ckpt, N_SAMPLES * SEQ_LEN, settings, runner=anatomy.runner)
    facts["prediction"] = found._asdict()
    facts["card"]["wall time, predicted"] = found.describe()


def _scanned(ckpt: Checkpoint, group_size: int, facts: dict[str, Any]):
    from awqbench.inspect.health import health

    table = health(ckpt, group_size=group_size)
    facts["card"]["numbers"] = health_summary(table)
    return table, list(weight_findings(table))


def _activations(ckpt: Checkpoint, stats, facts: dict[str, Any]) -> list[Finding]:
    from awqbench.inspect.health import activation_health, layer_verdicts
    from awqbench.quantize.statistics.stats import load_stats

    stats = load_stats(stats)
    stats.check(ckpt)
    table = activation_health(stats)
    counts = Counter(layer_verdicts(table)["verdict"])
    facts["activations"] = dict(counts)
    facts["card"]["activations"] = ", ".join(f"{n} layers {v}" for v, n in counts.items())
    return list(activation_findings(table))


def _add_time(anatomy: Anatomy, group_size: int, facts: dict[str, Any]) -> None:
    from awqbench.inspect.doctor.timing import time_one_block

    try:
        estimate = time_one_block(anatomy.runner, group_size)
    except AwqbenchError as error:
        facts["card"]["time"] = f"could not be told: {error}"
        return
    facts["time"] = estimate._asdict() | {"total_s": estimate.total_s}
    facts["card"]["time"] = estimate.describe()


def _verdict(
    ckpt: Checkpoint, findings: tuple[Finding, ...], anatomy: Anatomy, group_size: int
) -> tuple[str, str]:
    """Return the verdict in one word, or two, and its sentence."""
    name, first = ckpt.path.name, findings[0] if findings else None
    if first is not None and first.severity == NO:
        return "no", f"{name} cannot be quantized here; {first.sentence}"
    what = f"{name} can be quantized ({len(anatomy.linears)} linears, group size {group_size})"
    if first is not None and first.severity == CARE:
        count = sum(finding.severity == CARE for finding in findings)
        reasons = "one reason" if count == 1 else f"{count} reasons"
        return "with care", f"{what}, with {reasons} to look at first: {first.subject}"
    return "yes", what
