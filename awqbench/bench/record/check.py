"""Check that a record is whole, unchanged, and in agreement with itself.

The seal finds what was changed by hand or by accident. It is no signature: who changes a time
can compute a new seal, and is then found only if samples, statistics and derived figures no
longer follow from one another. A digest of an exact kernel cannot be made up at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

from awqbench.bench.record.kernels import bytes_per_call, expected_digest
from awqbench.bench.record.statistics import summarise
from awqbench.errors import (
    EmulatedTimingError,
    RecordConsistencyError,
    RecordDigestError,
    RecordSchemaError,
    RecordSealError,
)

Record = dict[str, Any]
TIME_FIELDS = ("samples_s", "stat", "derived", "bandwidth", "freq", "bytes_per_call")
EXACT_KERNELS = ("unpack", "dequantize")
# 8-bit activations stay near 1e-2.
WRONG_ABOVE = 0.05
# Sums in another order.
_TOLERANCE = 1e-9


def seal(record: Record) -> Record:
    """Return a record with the digest of its content as `seal`."""
    return {k: v for k, v in record.items() if k != "seal"} | {"seal": content_digest(record)}


def content_digest(record: Record) -> str:
    """Return the digest of all of a record but its seal."""
    content = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_record(record: Record, *, where: str = "record") -> None:
    """Check fields, seal and consistency of one record; digests of outputs are not computed.

    Parameters
    ----------
    record : dict
    where : str
        For error texts, such as ``a.jsonl, line 3``.

    Raises
    ------
    RecordSchemaError
        If a field is missing, unknown or of the wrong kind.
    EmulatedTimingError
        If an emulated record holds a time.
    RecordSealError
        If it was changed after it was sealed.
    RecordConsistencyError
        If figures do not follow from samples and case.
    RecordDigestError
        If an exact kernel has no digest, or a product is wrong.
    """
    _check_fields(record, where)
    if record["provenance"] == "emulated":
        timed = [name for name in TIME_FIELDS if name in record]
        if timed:
            raise EmulatedTimingError(
                f"{where}: an emulated record holds {', '.join(timed)}; the time of an emulator "
                "says nothing about the processor. Drop the line."
            )
    found = _checked_digest(record, where)
    if found != record["seal"]:
        raise RecordSealError(
            f"{where}: sealed as {record['seal'][:12]}..., but its content is {found[:12]}...: it "
            "was changed after it was written. Measure again, or take the original."
        )
    _check_result(record, where)
    if record["provenance"] != "emulated":
        _check_figures(record, where)


def _checked_digest(record: Record, where: str) -> str:
    try:
        return content_digest(record)
    except ValueError as error:  # JSON has no NaN, and Python's reader takes it
        raise RecordSchemaError(f"{where}: {error}.") from error


@cache
def _validator():
    import fastjsonschema

    text = files("awqbench.bench.record").joinpath("record.schema.json").read_text()
    return fastjsonschema.compile(json.loads(text))


def _check_fields(record: Record, where: str) -> None:
    import fastjsonschema

    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        raise RecordSchemaError(
            f"{where}: {error.message.replace('data', 'the record')}."
        ) from None


def _check_result(record: Record, where: str) -> None:
    kernel = record["case"]["kernel"]
    if kernel in EXACT_KERNELS and not record["digest"]["output"]:
        raise RecordDigestError(f"{where}: {kernel} is exact, and digest.output is missing.")
    error = record["rel_error"]
    if kernel in ("gemm", "dense") and (error is None or not error < WRONG_ABOVE):
        raise RecordDigestError(
            f"{where}: {kernel} by {record['case']['backend']} has a relative error of {error}; "
            f"above {WRONG_ABOVE} it is another product."
        )


def _check_figures(record: Record, where: str) -> None:
    case, samples, size = record["case"], record["samples_s"], record["block_size"]
    if case["kernel"] not in ("read", "decode"):
        sizes = case["M"], case["K"], case["N"]
        expected = bytes_per_call(case["kernel"], *sizes, act_dtype=case["act_dtype"])
        if record["bytes_per_call"] != expected:
            raise RecordConsistencyError(
                f"{where}: bytes_per_call is {record['bytes_per_call']}, and {case['kernel']} of "
                f"{' x '.join(map(str, sizes))} moves {expected}."
            )
    if samples:
        if len(samples) % size:
            raise RecordConsistencyError(
                f"{where}: {len(samples)} samples are no whole number of blocks of {size}."
            )
        for name, value in summarise(samples, size).items():
            _require_equal(record["stat"][name], value, f"{where}: stat.{name}", "samples_s")
    elif record["provenance"] == "measured":
        raise RecordConsistencyError(f"{where}: a measured record has no samples.")
    expected = derive(record)
    for name, value in record["derived"].items():
        _require_equal(value, expected.get(name), f"{where}: derived.{name}", "stat and case")


def derive(record: Record) -> dict[str, float | None]:
    """Return the figures that follow from a record's median and case.

    Returns
    -------
    dict
        `gb_s`, `gop_s` (products), `cycles_per_1024_weights` (where the clock was measured)
        and `tok_per_s` (models).
    """
    case, median = record["case"], record["stat"]["median_s"]
    found: dict[str, float | None] = {"gb_s": record["bytes_per_call"] / median / 1e9}
    mhz = record["freq"]["measured_mhz"]
    if case["kernel"] == "decode":
        return found | {"tok_per_s": 1 / median}
    if case["kernel"] == "read":
        return found
    weights = case["K"] * case["N"]
    is_product = case["kernel"] in ("gemm", "dense")
    cycles = median * mhz * 1e6 / (weights / 1024) if mhz and case["threads"] == 1 else None
    return found | {
        "gop_s": 2 * case["M"] * weights / median / 1e9 if is_product else None,
        "cycles_per_1024_weights": cycles,
    }


def _require_equal(found: Any, expected: Any, what: str, of: str) -> None:
    numbers = not isinstance(expected, bool) and None not in (found, expected)
    if numbers and math.isclose(found, expected, rel_tol=_TOLERANCE):
        return
    if found != expected:
        raise RecordConsistencyError(f"{what} is {found}, and follows from {of} as {expected}.")


@cache
def _reference(kernel: str, in_features: int, out_features: int) -> str | None:
    return expected_digest(kernel, in_features, out_features)


def check_digest(record: Record, *, where: str = "record") -> None:
    """Compare the recorded output of an exact kernel with the reference, computed here.

    Raises
    ------
    RecordDigestError
        If they differ.
    """
    case = record["case"]
    if case["kernel"] not in EXACT_KERNELS:
        return
    expected = _reference(case["kernel"], case["K"], case["N"])
    found = record["digest"]["output"]
    if found != expected:
        raise RecordDigestError(
            f"{where}: {case['kernel']} by {case['backend']} of {case['K']} x {case['N']} gave "
            f"{found[:12]}..., and this kernel gives {expected[:12]}... on every machine. The "
            "digest is of another kernel, or the machine computes wrongly; its time is not "
            "compared."
        )
