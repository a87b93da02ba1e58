"""Results of llama.cpp's llama-bench as records: JSON, JSON Lines or CSV, as it writes them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from awqbench.bench.record.check import Record, derive
from awqbench.bench.record.statistics import summarise
from awqbench.errors import FormatError, ParameterError

_NEEDED = ("build_commit", "cpu_info", "model_type", "model_size", "n_threads", "n_prompt", "n_gen",
           "avg_ns")  # fmt: skip
_X86_WORDS = ("intel", "amd", "xeon", "ryzen", "epyc", "threadripper")
_ARM_WORDS = ("apple", "neoverse", "cortex", "graviton", "ampere", "snapdragon", "arm")
_ARCHES = ("x86_64", "aarch64")


def import_llama_bench(
    file: str | Path, *, source: str = "", arch: str = ""
) -> tuple[list[Record], list[str]]:
    """Read what ``llama-bench -o json``, ``jsonl`` or ``csv`` wrote.

    Parameters
    ----------
    file : str or Path
    source : str
        Where the figures were published; without it they are ``recorded``.
    arch : {"", "x86_64", "aarch64"}
        Needed where the processor's name does not tell.

    Returns
    -------
    tuple of (list of dict, list of str)
        Decoding tests on the CPU as records, not yet sealed, and why other rows were left out.

    Raises
    ------
    FormatError
        If the file is none of the three, or fields are missing.
    ParameterError
        If the architecture cannot be told, or `arch` is neither of the two.
    """
    if arch and arch not in _ARCHES:
        raise ParameterError(f"arch is {arch!r}; choose {' or '.join(_ARCHES)}.")
    file = Path(file)
    records, left_out = [], []
    for number, row in enumerate(_read(file), start=1):
        where = f"{file.name}, row {number}"
        missing = [name for name in _NEEDED if row.get(name) in (None, "")]
        if missing:
            raise FormatError(
                f"{where}: no {', '.join(missing)}; give a file of llama-bench -o json."
            )
        try:
            reason = _why_left_out(row)
            if reason:
                left_out.append(f"{where}: {reason}")
            else:
                records.append(_record(row, source, arch, where))
        except ParameterError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise FormatError(f"{where}: {error}.") from error
    return records, left_out


def _read(file: Path) -> Iterable[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{file.name} cannot be read: {error}.") from error
    try:
        if text.startswith("["):
            rows = json.loads(text)
        elif text.startswith("{"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except (ValueError, csv.Error) as error:
        raise FormatError(f"{file.name} is no output of llama-bench: {error}.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise FormatError(f"{file.name} holds no rows of llama-bench.")
    return rows


def _why_left_out(row: dict[str, Any]) -> str:
    backends = str(row.get("backends") or "CPU")
    others = [name for name in backends.split(",") if name.strip() not in ("CPU", "BLAS", "")]
    if others and int(row.get("n_gpu_layers") or 0) != 0:
        return f"ran on {backends} with n_gpu_layers {row['n_gpu_layers']}, not on the CPU alone."
    if int(row["n_prompt"]) and int(row["n_gen"]):
        return "a prompt and tokens together; their times cannot be told apart."
    return "" if int(row["n_gen"]) else "a prompt, not decoding."


def _record(row: dict[str, Any], source: str, arch: str, where: str) -> Record:
    tokens = int(row["n_gen"])
    samples = [float(ns) / 1e9 / tokens for ns in row.get("samples_ns") or []]
    median = float(row["avg_ns"]) / 1e9 / tokens
    if not all(0 < seconds < math.inf for seconds in (median, *samples)):
        raise ValueError(f"times must be above 0: avg_ns {row['avg_ns']}, {row.get('samples_ns')}")
    stat = {"median_s": median, "p10_s": None, "p90_s": None, "mad_s": None, "stable": None}
    note = "" if samples else "no samples in the file: the median is llama-bench's mean"
    threads, cpu = int(row["n_threads"]), str(row["cpu_info"]).strip()
    model, quant = _split_type(str(row["model_type"]))
    machine = {"arch": arch or _arch_of(cpu, where), "cpu": cpu}
    identity = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()
    record: Record = {
        "schema": 1,
        "id": str(uuid.uuid4()),
        "provenance": "published" if source else "recorded",
        "utc": _time(row.get("test_time")),
        "tool": {"name": "llama-bench", "version": str(row.get("build_number") or "") or None,
                 "git": str(row["build_commit"])},
        "machine": {"id": identity, **machine},
        "isa": {},
        "software": {},
        "bandwidth": None,
        "freq": {"measured_mhz": None},
        "case": {
            "kernel": "decode",
            "backend": "llama.cpp",
            "model": model,
            "quant": quant,
            "n_prompt": int(row["n_prompt"]),
            "n_gen": tokens,
            "n_depth": int(row.get("n_depth") or 0),
            "threads": threads,
        },
        "bytes_per_call": int(row["model_size"]),
        "samples_s": samples,
        "block_size": 1,
        "stat": summarise(samples, 1) if samples else stat,
        "digest": {"input": None, "output": None},
        "rel_error": None,
        "note": note,
    }  # fmt: skip
    if source:
        record["source"] = source
    return record | {"derived": derive(record)}


def _split_type(text: str) -> tuple[str, str]:
    """Split ``llama 8B Q4_K - Medium`` into model and quantization."""
    found = re.fullmatch(r"(.+?) (\S+(?: - \w+)?)", text)
    if found is None:
        raise ValueError(f"model_type {text!r} names no model and quantization")
    return found[1], found[2]


def _arch_of(cpu: str, where: str) -> str:
    words = cpu.lower()
    if any(word in words for word in _X86_WORDS):
        return "x86_64"
    if any(word in words for word in _ARM_WORDS):
        return "aarch64"
    raise ParameterError(
        f"{where}: cpu_info {cpu!r} does not tell the architecture; give --arch x86_64 or aarch64."
    )


def _time(text: Any) -> str | None:
    if not text:
        return None
    return datetime.fromisoformat(str(text)).isoformat(timespec="seconds")
