"""Tokens a second of a model on a machine, from the machine's records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awqbench.bench.overhead import Overhead
from awqbench.bench.record.check import Record
from awqbench.bench.record.statistics import block_medians
from awqbench.bench.roofline import FITTED_ERROR, ThreadModel, fit_threads
from awqbench.bench.token_bytes import TokenBytes
from awqbench.errors import EmulatedTimingError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

# What the noise of blocks is worth at 95 %.
_TWO_SIGMA = 2.0
# Where what was measured was whole tokens.
NO_OVERHEAD = Overhead(0.0, 0.0, 0.0)


class Rate(NamedTuple):
    """How fast a machine gets through bytes by some kernel.

    `measured` are the seconds for a gigabyte by the number of threads, `model` is fitted to
    them for other numbers, and `noise` is by what fraction blocks of the measurement varied.
    """

    measured: dict[int, float]
    model: ThreadModel
    noise: float

    def seconds(self, nbytes: float, threads: int) -> float:
        """Return the time for so many bytes."""
        known = self.measured.get(threads)
        return nbytes / 1e9 * (self.model.seconds(threads) if known is None else known)

    def relative_error(self, threads: int) -> float:
        """Return the error of the measurement and, where it is needed, of the model."""
        form = 0.0 if threads in self.measured else self.model.relative_error(threads)
        return math.hypot(form, self.noise)


class Prediction(NamedTuple):
    """Tokens a second with an interval, and where the time of a token goes.

    `bound` names the largest part: "packed", "dense" or "overhead".
    """

    tok_per_s: float
    low: float
    high: float
    bound: str
    packed_s: float
    dense_s: float
    overhead_s: float


def rate_of(
    records: Sequence[Record], kernel: str, *, backend: str = "", act_dtype: str = ""
) -> Rate:
    """Return the rate of a kernel from a machine's records, by its largest shape.

    Parameters
    ----------
    records : sequence of dict
        Of one machine.
    kernel : {"read", "gemm", "dense"}
    backend, act_dtype : str
        "" for any.

    Returns
    -------
    Rate
        On counts of threads that were not measured as `ThreadModel` says.

    Raises
    ------
    ParameterError
        If no record is of such a kernel.
    EmulatedTimingError
        If the records are of an emulated processor.
    """
    if any(record["provenance"] == "emulated" for record in records):
        raise EmulatedTimingError(
            "the records are of an emulated processor and hold no times to predict from."
        )
    found = [
        record
        for record in records
        if record["case"]["kernel"] == kernel
        and backend in ("", record["case"]["backend"])
        and act_dtype in ("", record["case"].get("act_dtype"))
    ]
    if not found:
        what = " ".join(filter(None, [kernel, backend, act_dtype]))
        raise ParameterError(f"no record of {what}; make one with `awqbench record`.")
    largest = max(record["bytes_per_call"] for record in found)
    found = [record for record in found if record["bytes_per_call"] == largest]
    counts = [record["case"]["threads"] for record in found]
    seconds = [record["stat"]["median_s"] / record["bytes_per_call"] * 1e9 for record in found]
    noise = _TWO_SIGMA * max(_spread(record) for record in found)
    return Rate(dict(zip(counts, seconds, strict=True)), fit_threads(counts, seconds), noise)


def rate_of_sweep(sweep: pd.DataFrame) -> Rate:
    """Return the rate of a machine from published speeds of one model.

    Whatever that model cost beside reading is in the rate, so that it is fair for models of
    about its size; predict with `NO_OVERHEAD`.

    Parameters
    ----------
    sweep : DataFrame
        One of `literature.published_sweeps`.

    Raises
    ------
    ParameterError
        If the size of its file is not known.
    """
    size_gb = float(sweep["file_gb"].iloc[0])
    if not size_gb > 0:
        raise ParameterError(
            "the sweep's file_gb is not known, and bytes a second do not follow from tokens a "
            "second without it."
        )
    counts = [int(count) for count in sweep["threads"]]
    seconds = [1 / (speed * size_gb) for speed in sweep["tok_per_s"]]
    model = fit_threads(counts, seconds)
    return Rate(dict(zip(counts, seconds, strict=True)), model, FITTED_ERROR)


def _spread(record: Record) -> float:
    medians = block_medians(record["samples_s"], record["block_size"])
    return float(np.std(np.log(medians), ddof=1)) if len(medians) > 1 else 0.0


def predict(
    parts: TokenBytes,
    *,
    layers: int,
    threads: int,
    packed: Rate,
    dense: Rate,
    overhead: Overhead | None = None,
) -> Prediction:
    """Predict tokens a second.

    Parameters
    ----------
    parts : TokenBytes
        What a token reads.
    layers : int
        Of the model, for the overhead.
    threads : int
    packed, dense : Rate
        Of packed linears, and of all else that is read.
    overhead : Overhead, optional
        Without it what remains is a bound from above: the interval's lower end is then half
        of it.

    Returns
    -------
    Prediction

    Examples
    --------
    >>> rate = Rate({1: 0.1}, fit_threads([1], [0.1]), noise=0.05)  # 10 GB/s
    >>> parts = TokenBytes(packed=10**9, dense=0, head=0, embedding_row=0, kv=0)
    >>> predict(parts, layers=1, threads=1, packed=rate, dense=rate).tok_per_s
    10.0
    """
    others = parts.dense + parts.head + parts.embedding_row + parts.kv
    seconds = {
        "packed": packed.seconds(parts.packed, threads),
        "dense": dense.seconds(others, threads),
        "overhead": overhead.seconds(layers) if overhead else 0.0,
    }
    errors = {
        "packed": packed.relative_error(threads),
        "dense": dense.relative_error(threads),
        "overhead": overhead.relative_error if overhead else 0.0,
    }
    total = sum(seconds.values())
    # Parts that are off by their own errors, independent of one another.
    error = math.hypot(*(seconds[name] * errors[name] for name in seconds)) / total
    speed = 1 / total
    low = speed / (1 + error) if overhead else speed / (1 + error) / 2
    bound = max(seconds, key=seconds.__getitem__)
    times: dict[str, Any] = {f"{name}_s": value for name, value in seconds.items()}
    return Prediction(speed, low, speed * (1 + error), bound, **times)
