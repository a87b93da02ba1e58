"""Time whole models: the prompt, tokens one by one, loading and memory.

A model's token needs every weight once, so that decoding can be no faster than reading them:
the roofline that each rate is a share of.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.bench.gemm_bench import Progress
from awqbench.bench.gemm_figures import VERSUS
from awqbench.bench.model_process import ModelProcess
from awqbench.bench.model_worker import DENSE, Generation
from awqbench.bench.probes import available_bytes, read_probe
from awqbench.bench.synthetic import MODELS, rounded_folder, synthetic_folder
from awqbench.bench.timing import Timing, time_in_turns
from awqbench.errors import FormatError, ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.headers import DTYPES
from awqbench.inspect.folders.tensor_kinds import tensor_kind

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bench_model", "bytes_per_token", "rounded_folder", "synthetic_folder", "MODELS"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_ITEM_BYTES = {dtype: size for size, dtype in DTYPES.values()}
# Bytes of a process for each byte of its folder while it loads, and where it is decoded.
_LOADING, _DECODED = 2.5, 6.0
_MEMORY_SHARE = 0.8
# Of what imports alone take.
_PROCESS_BYTES = 600_000_000


class Workload(NamedTuple):
    """What is generated: random tokens in, greedy tokens out, so many times after a warm-up."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    rounds: int = 3


def bench_model(
    folder: str | Path | Checkpoint,
    *,
    backends: Sequence[str] = ("auto",),
    dtype: str | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 3,
) -> pd.DataFrame:
    """Time a quantized folder as a model, with each backend in turns.

    Each backend runs in a process of its own, on as many threads as torch has here. They are
    all loaded at once if memory allows, and take turns; else one after the other.

    Parameters
    ----------
    folder : str, Path or Checkpoint
        Quantized; `synthetic_folder` makes one.
    backends : sequence of str
        Those of `load_quantized`, or "dense": the same model decoded when it is loaded.
    dtype : str, optional
        Of activations; None as `load_quantized` chooses.
    prompt_tokens, new_tokens : int
        Random tokens in, and greedy tokens out, at least 2.
    rounds : int
        Generations of each, after a short one to warm up.

    Returns
    -------
    DataFrame
        As `measure_model` yields, with a column ``vs dense`` (times faster in decoding) where
        "dense" is among the backends.

    Raises
    ------
    FormatError
        If the folder is not quantized.
    ParameterError
        If a number of tokens is too small.
    BackendError
        If a backend is not available, or its process dies.
    """
    import pandas as pd

    workload = Workload(prompt_tokens, new_tokens, rounds)
    tables = list(measure_model(folder, workload, backends=backends, dtype=dtype))
    return with_model_ratios(pd.concat(tables, ignore_index=True))


def measure_model(
    folder: str | Path | Checkpoint,
    workload: Workload | None = None,
    *,
    backends: Sequence[str] = ("auto",),
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield rows as they are measured: all at once where backends take turns.

    Ctrl-C yields the rows of what was measured, then goes on up.

    Parameters
    ----------
    folder, backends, dtype
        As in `bench_model`.
    workload : Workload, optional
    progress : callable, optional
        Gets a line for each step; by default it goes to standard error.

    Yields
    ------
    DataFrame
        A row for each backend: `model`, `backend`, `dtype`, `prompt_tokens`, `new_tokens`,
        `load_s`, `peak_bytes` (of its process, imports included), `folder_bytes`,
        `prefill_tok_per_s`, `prefill_spread`, `ttft_s`, `tok_per_s` (median), `best_tok_per_s`,
        `spread`, `is_noisy`, `bytes_per_token`, `gb_s`, `read_gb_s` (of the probe in the same
        turns), `fraction_of_read` and `is_interleaved`.
    """
    ckpt, work = open_checkpoint(folder), workload or Workload()
    _check(ckpt, work, backends)
    say = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    groups = _together(ckpt, backends)
    for group in groups:
        with ExitStack() as stack:
            runs = []
            for backend in group:
                runs.append(stack.enter_context(_start(ckpt, backend, dtype)))
                say(f"{ckpt.path.name}, {backend}: loaded in {runs[-1].facts['load_s']:.1f} s")
            stopped = yield from _measure_group(ckpt, runs, work, is_interleaved=len(groups) == 1)
        if stopped:
            raise KeyboardInterrupt
        done = f"{work.rounds} rounds of {work.new_tokens} tokens"
        say(f"{ckpt.path.name}, {', '.join(group)}: {done}")


def _check(ckpt: Checkpoint, work: Workload, backends: Sequence[str]) -> None:
    if work.prompt_tokens < 1 or work.new_tokens < 2 or not backends:
        raise ParameterError(
            f"prompt_tokens is {work.prompt_tokens}, new_tokens {work.new_tokens}, backends "
            f"{list(backends)}: at least 1, 2 (the first comes with the prompt) and one backend "
            "are needed."
        )
    if ckpt.quantization is None:
        raise FormatError(
            f"{ckpt.path.name} is in full precision; time a quantized folder, such as one that "
            "rounded_folder() or `awqbench quantize` makes of it."
        )
    ckpt.quantization.require_readable()


def _together(ckpt: Checkpoint, backends: Sequence[str]) -> list[list[str]]:
    """Return which backends are loaded at the same time: all, or each alone."""
    needed = sum(
        _PROCESS_BYTES + ckpt.nbytes * (_DECODED if backend == DENSE else _LOADING)
        for backend in backends
    )
    if needed <= _MEMORY_SHARE * available_bytes():
        return [list(backends)]
    return [[backend] for backend in backends]


def _start(ckpt: Checkpoint, backend: str, dtype: str | None) -> ModelProcess:
    import torch

    path = str(ckpt.path.absolute())
    return ModelProcess(path, backend, dtype=dtype, threads=torch.get_num_threads())


def _measure_group(
    ckpt: Checkpoint, runs: Sequence[ModelProcess], work: Workload, *, is_interleaved: bool
) -> Generator[pd.DataFrame, None, bool]:
    """Yield the rows of some processes; return whether Ctrl-C cut them short."""
    samples: list[list[Generation]] = [[] for _ in runs]
    read: list[float] = []
    stopped = False
    try:
        _take_turns(runs, work, samples, read)
    except KeyboardInterrupt:
        stopped = True
    measured = [pair for pair in zip(runs, samples, strict=True) if pair[1]]
    if measured:
        yield _rows(ckpt, measured, Timing(tuple(read))).assign(is_interleaved=is_interleaved)
    return stopped


def _take_turns(
    runs: Sequence[ModelProcess],
    work: Workload,
    samples: Sequence[list[Generation]],
    read: list[float],
) -> None:
    """Add the generations of each process, and the probe's times for a gigabyte."""
    probe = read_probe()
    for run in runs:
        run.generate(work.prompt_tokens, 2)
    for _ in range(max(1, work.rounds)):
        for run, found in zip(runs, samples, strict=True):
            times = time_in_turns({"read": probe.call}, rounds=2)["read"].samples_s
            read += [seconds / probe.amount * 1e9 for seconds in times]
            found.append(run.generate(work.prompt_tokens, work.new_tokens))


def _rows(
    ckpt: Checkpoint,
    measured: Sequence[tuple[ModelProcess, Sequence[Generation]]],
    read: Timing,
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for run, found in measured:
        nbytes = run.facts["parameter_bytes"]
        if run.backend != DENSE:
            nbytes = bytes_per_token(ckpt, run.facts["dtype"])
        row = {"model": ckpt.path.name, "backend": run.backend, "dtype": run.facts["dtype"]}
        row |= {"load_s": run.facts["load_s"], "peak_bytes": run.peak_bytes}
        row["folder_bytes"] = ckpt.nbytes
        rows.append(row | model_figures(found, read, bytes_per_token=nbytes))
    return pd.DataFrame(rows)


def model_figures(
    samples: Sequence[Generation], read: Timing, *, bytes_per_token: int
) -> dict[str, Any]:
    """Return rates of some generations, and their share of what reading the weights allows.

    Parameters
    ----------
    samples : sequence of Generation
        Of one backend.
    read : Timing
        Seconds in which the probe read 1e9 bytes, in the same run.
    bytes_per_token : int
        Of weights that a token needs. The key-value cache is left out: 2 % of the bytes of a
        1.7 B model at 200 tokens.

    Returns
    -------
    dict
        As `measure_model` describes.
    """
    prefill = Timing(tuple(sample.prefill_s for sample in samples))
    token = Timing(tuple(sample.token_s for sample in samples))
    read_gb_s = 1 / read.median_s
    gb_s = bytes_per_token / token.median_s / 1e9
    return {
        "prompt_tokens": samples[0].prompt_tokens,
        "new_tokens": samples[0].new_tokens,
        "prefill_tok_per_s": samples[0].prompt_tokens / prefill.median_s,
        "prefill_spread": prefill.spread,
        "ttft_s": prefill.median_s,
        "tok_per_s": 1 / token.median_s,
        "best_tok_per_s": 1 / token.min_s,
        "spread": token.spread,
        "is_noisy": token.is_noisy or read.is_noisy,
        "bytes_per_token": bytes_per_token,
        "gb_s": gb_s,
        "read_gb_s": read_gb_s,
        "fraction_of_read": gb_s / read_gb_s,
    }


def bytes_per_token(ckpt: Checkpoint, dtype: str) -> int:
    """Return the bytes of weights that a token reads, from headers.

    Packed parts count as stored, dense ones in the dtype they are loaded in; an embedding
    counts only where it is the output layer too, for a token needs one row of it.

    Parameters
    ----------
    ckpt : Checkpoint
    dtype : str
        torch's name, such as ``bfloat16``.
    """
    kinds = {name: tensor_kind(ckpt, name) for name in ckpt.tensors}
    has_head = "lm_head" in kinds.values() or ckpt.is_packed("lm_head")
    total = 0
    for name, info in ckpt.tensors.items():
        if kinds[name] == "embeddings" and has_head:
            continue
        is_part = ckpt.is_packed(name.rpartition(".")[0])
        is_dense = info.dtype in _FLOATS and not is_part
        total += info.size * _ITEM_BYTES[dtype] if is_dense else info.nbytes
    return total


def with_model_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Add how many times faster than the decoded model each backend decodes, where it ran."""
    dense = table.loc[table["backend"] == DENSE, "tok_per_s"]
    if dense.empty:
        return table
    return table.assign(**{VERSUS + DENSE: table["tok_per_s"] / dense.iloc[0]})
