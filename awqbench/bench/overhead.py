"""What a token costs beside reading weights: Python, small operations, calls of kernels.

Measured on models of the same heads that are so thin that their weights are read in no time,
with few and with more layers: the difference is what a layer costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from awqbench.bench.model_bench import Workload
from awqbench.bench.model_process import ModelProcess
from awqbench.bench.synthetic import synthetic_folder

_FEW, _MORE = 2, 8
# The thinnest that groups of 128 allow: some 100 KB of weights a layer.
_THIN = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 512}
_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


class Overhead(NamedTuple):
    """Seconds of a token for each layer and for the rest, and by what fraction they vary."""

    layer_s: float
    step_s: float
    relative_error: float

    def seconds(self, layers: int) -> float:
        """Return the overhead of a model of so many layers."""
        return self.step_s + layers * self.layer_s


class ThinModels:
    """Two thin models in processes of their own, to be timed in turns with another one.

    Parameters
    ----------
    config : mapping
        Whose attention heads the thin models have.
    threads : int
    backend : str
        As `load_quantized` takes it.
    workload : Workload, optional
        Its rounds are the caller's.

    Raises
    ------
    BackendError
        If the backend is not available.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        threads: int,
        backend: str = "native",
        workload: Workload | None = None,
    ) -> None:
        self._work = workload or Workload(32, 64, 5)
        self._times: dict[int, list[float]] = {_FEW: [], _MORE: []}
        heads = {key: config[key] for key in _HEADS if key in config}
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="awqbench-thin-")))
            self._runs = {}
            for layers in self._times:
                changes = _THIN | heads | {"num_hidden_layers": layers}
                folder = synthetic_folder(place / str(layers), "qwen3-0.6b", **changes)
                process = ModelProcess(str(folder), backend, dtype=None, threads=threads)
                self._runs[layers] = stack.enter_context(process)
                process.generate(self._work.prompt_tokens, 8)  # wakes threads and caches
            self._stack = stack.pop_all()

    def __enter__(self) -> ThinModels:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def take_turn(self) -> None:
        """Time one generation of each."""
        for layers, run in self._runs.items():
            times = run.generate(self._work.prompt_tokens, self._work.new_tokens)
            self._times[layers].append(times.token_s)

    def overhead(self) -> Overhead:
        """Return what the turns so far say; at least one is needed."""
        return _overhead(self._times)


def measure_overhead(
    config: Mapping[str, Any],
    *,
    threads: int,
    backend: str = "native",
    workload: Workload | None = None,
) -> Overhead:
    """Measure the overhead of decoding on this machine, by `ThinModels` alone.

    Parameters
    ----------
    config, threads, backend, workload
        As `ThinModels` takes them.

    Returns
    -------
    Overhead

    Raises
    ------
    BackendError
        If the backend is not available.
    """
    work = workload or Workload(32, 64, 5)
    with ThinModels(config, threads=threads, backend=backend, workload=work) as thin:
        for _ in range(work.rounds):
            thin.take_turn()
        return thin.overhead()


def _overhead(times: Mapping[int, list[float]]) -> Overhead:
    """Draw the line through the times of two numbers of layers."""
    (few, short), (more, long) = ((n, np.median(seconds)) for n, seconds in times.items())
    layer = max(0.0, (long - short) / (more - few))
    spread = max(np.std(np.log(seconds)) for seconds in times.values())
    return Overhead(float(layer), max(0.0, float(short - few * layer)), 2 * float(spread))
