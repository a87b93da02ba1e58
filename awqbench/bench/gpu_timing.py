"""Times on an NVIDIA GPU: graph replays in turns, and the ceilings to hold them against.

Not run on a GPU so far. A graph holds one call for each of several copies of a weight, together
larger than the cache, so that each call reads its weight from memory; replaying it leaves the
host's launches out.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

WARM_UPS, REPLAYS = 20, 50
# What is timed at once: a launch of a graph takes the host some 10 us, which is to be nothing
# beside it.
TIMED_S = 1e-3
_MAX_AT_ONCE = 100
COPY_BYTES = 8_000_000_000
_PEAK_SIZE = 8192


class GpuTime(NamedTuple):
    """Seconds of one call: median and interquartile range over replays, and with a launch."""

    median_s: float
    iqr_s: float
    eager_s: float


class GpuCeilings(NamedTuple):
    """What the GPU reaches: bytes read plus written by a copy, and a product in 16 bits.

    The product is of float16 where the GPU has no bfloat16.
    """

    device: str
    copy_gb_s: float
    product_tflop_s: float
    l2_bytes: int
    sm_clock_mhz: str


def measure_ceilings() -> GpuCeilings:
    """Measure a large copy and a large product of random numbers."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    nbytes = min(COPY_BYTES, torch.cuda.mem_get_info(0)[0] // 4)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    product_s = time_call(lambda: a @ b)
    return GpuCeilings(
        properties.name,
        2 * nbytes / _copy_s(nbytes) / 1e9,
        2 * _PEAK_SIZE**3 / product_s / 1e12,
        properties.L2_cache_size,
        _sm_clock(),
    )


def _copy_s(nbytes: int) -> float:
    import torch

    source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return time_call(lambda: target.copy_(source))


def _sm_clock() -> str:
    """Return the multiprocessors' clock in MHz as nvidia-smi says, "" if it does not."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def time_call(call: Callable[[], object], repeats: int = 20) -> float:
    """Return the median seconds of a call, by events on the current stream."""
    for _ in range(3):
        call()
    return float(np.median([_elapsed(call) for _ in range(repeats)]))


def _elapsed(call: Callable[[], object]) -> float:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def capture(calls: list[Callable[[], torch.Tensor]]) -> torch.cuda.CUDAGraph:
    """Return a graph of some calls, each made once before: that compiles and loads kernels."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def time_in_turns(
    paths: dict[str, list[Callable[[], torch.Tensor]]],
) -> tuple[dict[str, GpuTime], dict[str, Exception]]:
    """Time paths, in turns.

    Parameters
    ----------
    paths : dict
        Name to calls, one for each copy of the weight.

    Returns
    -------
    times : dict of str to GpuTime
        Of one call.
    failures : dict of str to Exception
        What those raised that could not be captured in a graph; they have no time.
    """
    graphs, failures = {}, {}
    for name, calls in paths.items():
        try:
            graphs[name] = capture(calls)
        # A peer compiles and launches by whatever library it brings, which raises what it likes.
        except Exception as error:
            failures[name] = error
    for _ in range(WARM_UPS):
        for graph in graphs.values():
            graph.replay()
    at_once = {name: _replays_at_once(graph) for name, graph in graphs.items()}
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPLAYS):
        for name, graph in graphs.items():
            n_calls = at_once[name] * len(paths[name])
            taken[name].append(_elapsed(_repeated(graph.replay, at_once[name])) / n_calls)
    times = {}
    for name in graphs:
        low, median, high = np.percentile(taken[name], [25, 50, 75])
        calls = paths[name]
        eager = _elapsed(lambda calls=calls: [call() for call in calls]) / len(calls)
        times[name] = GpuTime(float(median), float(high - low), eager)
    return times, failures


def _replays_at_once(graph: torch.cuda.CUDAGraph) -> int:
    """Return how many replays in a row take `TIMED_S`."""
    return min(_MAX_AT_ONCE, max(1, round(TIMED_S / max(_elapsed(graph.replay), 1e-6))))


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [call() for _ in range(times)]
