"""Wall time of quantizing, from operations and a short probe of this machine.

Each kind of work is done once on a small piece, by the functions that a run uses; the rest
is multiplication. Nothing of the model is run, and only a few megabytes of it are read.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.inspect.doctor.findings import duration
from awqbench.quantize.search import make_settings

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockRunner
    from awqbench.quantize.settings import Settings

# Rows, channels and tokens of the pieces: tens of milliseconds each on one core, and too
# large for the second-level cache, as the work itself.
_ROWS, _WIDTH, _TOKENS = 512, 1024, 1024
_ROUNDS = 3
# Bytes read and written.
_PIECE = 1 << 24
# Runs of a block that finding its folds takes, each reading all weights in float32.
_TRACE_RUNS = 40
# What the counts leave out (attention, norms, copies): the interval is this much wider.
_UNCOUNTED = 1.25


class Rates(NamedTuple):
    """Seconds of one unit of each kind of work.

    Parameters
    ----------
    forward, statistics, product : float
        An operation of a linear, of X'X, of a weight error times H.
    elementwise : float
        A number that enters or leaves a linear: norms, activations, rotations.
    candidate, clip, rounding : float
        A weight in one candidate of scales, in the search of ranges, and in rounding, packing
        and measuring.
    factor : float
        An operation of GPTQ's factor of H; 0 if it is not used.
    trace : float
        A weight read in float32 for a few tokens.
    read, write : float
        A byte.
    """

    forward: float
    elementwise: float
    statistics: float
    product: float
    candidate: float
    clip: float
    rounding: float
    factor: float
    trace: float
    read: float
    write: float


class Prediction(NamedTuple):
    """Seconds of a run: the likely figure, an interval about it, and its parts."""

    low_s: float
    seconds: float
    high_s: float
    parts: dict[str, float]

    def describe(self) -> str:
        """Return one phrase for the card."""
        most = max(self.parts, key=lambda part: self.parts[part])
        return (
            f"about {duration(self.seconds)} ({duration(self.low_s)} to {duration(self.high_s)}) "
            f"at this machine's present speed, {self.parts[most] / self.seconds:.0%} of it {most}"
        )


def predict_seconds(
    ckpt: Checkpoint | str | Path,
    n_tokens: int,
    settings: Settings | None = None,
    *,
    runner: BlockRunner | None = None,
) -> Prediction:
    """Predict the wall time of `quantize` on this machine.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    n_tokens : int
        Of the calibration text.
    settings : Settings, optional
        Default those of `quantize`.
    runner : BlockRunner, optional
        Of the model, where there is one already.

    Returns
    -------
    Prediction

    Raises
    ------
    AlreadyQuantizedError, TraceError
        If the model is quantized, or cannot be run block by block.
    """
    import torch

    from awqbench.model import BlockRunner

    ckpt, settings = open_checkpoint(ckpt), make_settings(settings)
    runner = runner or BlockRunner(ckpt)
    shapes = runner.linear_shapes()
    blocks = [_work(runner, i, shapes, n_tokens, settings) for i in range(runner.n_blocks)]
    total = {key: sum(block[key] for block in blocks) for key in blocks[0]}
    kinds = {runner.block_kind(i): runner.block_elements(i) for i in range(runner.n_blocks)}
    total["trace"] = _TRACE_RUNS * sum(kinds.values())
    outside = ckpt.nbytes - sum(block["read"] for block in blocks) / 2
    total["read"] += outside
    total["write"] += outside
    rounds = _rates(runner.dtype, settings, _path_of(ckpt), torch.get_num_threads())
    figures = [_seconds(total, rates) for rates in rounds]
    sums = sorted(sum(parts.values()) for parts in figures)
    middle = min(figures, key=lambda parts: abs(sum(parts.values()) - sums[len(sums) // 2]))
    return Prediction(sums[0] / _UNCOUNTED, sum(middle.values()), sums[-1] * _UNCOUNTED, middle)


def _path_of(ckpt: Checkpoint) -> Path:
    return max(ckpt.tensors.values(), key=lambda info: info.nbytes).file


def _work(
    runner: BlockRunner,
    i: int,
    shapes: dict[str, tuple[int, int]],
    n_tokens: int,
    settings: Settings,
) -> dict[str, float]:
    """Count the work of one block in the units of `Rates`."""
    from awqbench.inspect.doctor.resources import site_groups

    head = f"{runner.block_name(i)}."
    linears = {n: s for n, s in shapes.items() if n.startswith(head)}
    work = dict.fromkeys(Rates._fields, 0.0)
    for names in site_groups(linears):
        in_features = linears[names[0]][1]
        rows = sum(linears[name][0] for name in names)
        weights = rows * in_features
        blocks = 1.25 if in_features < 8192 else 1.125  # of X'X, by block rows
        work["forward"] += 2.0 * n_tokens * weights
        work["elementwise"] += 2.0 * n_tokens * (rows + in_features)
        work["statistics"] += blocks * n_tokens * in_features**2
        if settings.scales == "awq":
            sampled = min(rows, settings.max_rows) * in_features * (settings.n_grid + 1)
            work["candidate"] += sampled
            work["product"] += 2.0 * sampled * in_features
        work["product"] += 6.0 * weights * in_features
        work["clip"] += weights * settings.clip
        work["rounding"] += weights
        work["factor"] += in_features**3 * (settings.rounding == "gptq")
        work["write"] += 4.0 * in_features**2 + weights / 2
    stored = runner.stored_names(i).values()
    work["read"] = 2.0 * sum(runner.ckpt.tensors[n].nbytes for n in stored)
    work["write"] += n_tokens * runner.hidden_size * runner.dtype.itemsize
    return work


def _seconds(work: dict[str, float], rates: Rates) -> dict[str, float]:
    """Return the seconds of each stage of a run."""
    each = {name: work[name] * rate for name, rate in rates._asdict().items()}
    return {
        "reading": each["read"],
        "finding folds": each["trace"],
        "forward pass": each["forward"] + each["elementwise"],
        "statistics": each["statistics"],
        "search": sum(each[n] for n in ("product", "candidate", "clip", "rounding", "factor")),
        "writing": each["write"],
    }


@lru_cache
def _rates(dtype: torch.dtype, settings: Settings, shard: Path, threads: int) -> tuple[Rates, ...]:
    """Measure each kind of work a few times; once in a process for the same arguments."""
    probes = _probes(dtype, settings, shard)
    for call, _ in probes.values():
        call()  # first calls are slow
    return tuple(
        Rates(**{name: _time(call) / amount for name, (call, amount) in probes.items()})
        for _ in range(_ROUNDS)
    )


def _probes(
    dtype: torch.dtype, settings: Settings, shard: Path
) -> dict[str, tuple[Callable[[], object], float]]:
    """Return a call for each kind of work, and how many units it does."""
    import torch

    from awqbench.formats.layouts.table import write_linear
    from awqbench.packed import quantize_weight
    from awqbench.quantize.choices.clip import search_clip
    from awqbench.quantize.choices.gptq import inverse_factor
    from awqbench.quantize.choices.scales import in_search_dtype, scaled_loss
    from awqbench.quantize.statistics.moments import Moments, SiteMoments

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_ROWS, _WIDTH, generator=generator)
    x = torch.randn(_TOKENS, _WIDTH, generator=generator).to(dtype)
    moments = Moments(_WIDTH)
    moments.add(x)
    gram = moments.gram / _TOKENS
    search_gram = in_search_dtype(gram)
    error = weight.to(search_gram.dtype)
    narrow = weight.to(dtype)
    size = settings.group_size if 0 < settings.group_size <= _WIDTH else _WIDTH
    size = size if _WIDTH % size == 0 else 128
    blocks = SiteMoments(moments.tensors()).diagonal_blocks(size)
    plain = make_settings(None, group_size=size)
    few, tall = torch.randn(24, 2048), torch.randn(2048, 2048)

    def rounding():
        packed = quantize_weight(weight.numpy(), 4, size, scale_dtype="float16")
        write_linear("awq-gemm", packed)
        return torch.from_numpy(packed.dequantize()) - weight

    # One candidate on narrow groups of channels: nearly all of it is element by element.
    slim = weight.reshape(-1, size)
    slim_gram = search_gram[:size, :size].contiguous()
    ones = torch.ones(size)
    n_weights = float(weight.numel())
    return {
        "forward": (lambda: torch.nn.functional.linear(x, narrow), 2.0 * _TOKENS * n_weights),
        "elementwise": (lambda: torch.nn.functional.silu(x) * x, float(x.numel())),
        "statistics": (lambda: moments.add(x), 1.25 * _TOKENS * _WIDTH**2),
        "product": (lambda: error @ search_gram, 2.0 * n_weights * _WIDTH),
        "candidate": (lambda: scaled_loss(slim, slim_gram, ones, plain, size), n_weights),
        "clip": (lambda: search_clip(weight, blocks, plain, group_size=size), n_weights),
        "rounding": (rounding, n_weights),
        "factor": (lambda: inverse_factor(gram), float(_WIDTH**3)),
        "trace": (lambda: few @ tall, float(tall.numel())),
        "read": (lambda: _read(shard), float(min(_PIECE, shard.stat().st_size))),
        "write": (_write, float(_PIECE)),
    }


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_PIECE)


def _write() -> None:
    from awqbench.formats.shard import flush

    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(_PIECE))
        file.flush()
        flush(Path(file.name))


def _time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
