"""Time packed products against one another and against what the machine can do.

Every figure is taken in one run: our paths, peers and probes of memory and arithmetic call in
turns, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.bench.gemm_cases import (
    GemmCase,
    Rotation,
    checked_tokens,
    copies_needed,
    exact_product,
    make_cases,
    random_weight,
    relative_error,
)
from awqbench.bench.gemm_figures import figures, with_ratios
from awqbench.bench.gemm_paths import Path, as_array, own_paths
from awqbench.bench.peers import peer_paths
from awqbench.bench.probes import (
    Probe,
    compute_probes,
    dot_probe,
    last_level_cache_bytes,
    read_probe,
)
from awqbench.bench.timing import Timing, time_in_turns, wait_for_idle_threads
from awqbench.errors import ParameterError
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import pandas as pd

# A turn repeats short calls, each on the next copy, until it has lasted about so long: the
# clock's error is then small. One call before it is not timed.
_TURN_S = 0.004
_MAX_BURST = 16
# What an optional package may raise while it prepares a weight.
_PREPARE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, MemoryError)

Progress = Callable[[str], Any]


def bench_gemm(
    shapes: Sequence[str] = ("4096x4096",),
    tokens: Sequence[int] = (1, 16, 512),
    *,
    bits: int = 4,
    group_size: int = 128,
    rounds: int = 11,
) -> pd.DataFrame:
    """Time every usable backend and peer, in turns, beside probes of the machine.

    Threads are those of the caller: see `limited_threads`.

    Parameters
    ----------
    shapes : sequence of str
        ``KxN``, or names in `gemm_cases.SHAPES`.
    tokens : sequence of int
        M.
    bits, group_size : int
        Of the weight; -1 for whole rows.
    rounds : int
        Turns of each.

    Returns
    -------
    DataFrame
        As `measure_gemm` yields them, of all cases; `attrs["absent"]` names what was not
        timed and why.

    Raises
    ------
    ParameterError, AlignmentError
        If no such weight can be made.
    """
    import pandas as pd

    cases = make_cases(shapes, tokens, bits=bits, group_size=group_size)
    tables = list(measure_gemm(cases, rounds=rounds))
    return join_tables(tables, pd.concat)


def join_tables(tables: Sequence[pd.DataFrame], concat: Callable) -> pd.DataFrame:
    """Put the tables of cases below one another, and what was absent together."""
    absent: dict[str, str] = {}
    for table in tables:
        absent |= table.attrs.pop("absent", {})
    joined = concat(tables, ignore_index=True)
    joined.attrs["absent"] = absent
    return joined


def measure_gemm(
    cases: Sequence[GemmCase],
    *,
    rounds: int = 11,
    paths: Sequence[Path] | None = None,
    progress: Progress | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of each case as soon as they are measured.

    Parameters
    ----------
    cases : sequence of GemmCase
    rounds : int
    paths : sequence of Path, optional
        Default: all of this package and all peers.
    progress : callable, optional
        Gets a line for each case; by default it goes to standard error.

    Yields
    ------
    DataFrame
        A row for each path: the fields of the case, `path`, `is_peer`, `copies`,
        `rotated_caches` (bytes of all copies over the last-level cache), `min_s`, `median_s`,
        `spread` (longest over shortest), `is_noisy` (this or the probe's spread is above
        `NOISY_SPREAD`), `gb_s` (bytes of the weight over the median time), `read_gb_s` and
        `peak_gflop_per_s` (read at its median, arithmetic at its best),
        `fraction_of_read`, `gflop_per_s`, `fraction_of_peak`, `bound_s` (the least time that the
        probes allow), `roofline_fraction` (that over the median), `rel_error`, `is_wrong`, and a
        column ``vs PEER`` for each peer: how many times faster than it.
    """
    say = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    paths = choose_paths(None) if paths is None else list(paths)
    probes = {"read": read_probe(), "read by dot": dot_probe(), **compute_probes()}
    for weight_case, group in groupby(cases, key=_weight_of):
        packed = random_weight(weight_case)
        prepared, absent = prepare_paths(paths, weight_case, packed)
        for case in group:
            started = time.perf_counter()
            table = time_case(case, packed, prepared, probes, rounds=rounds)
            table.attrs["absent"] = absent
            say(
                f"{case.shape}, {case.bits} bits, group {case.group_size}, M = {case.tokens}: "
                f"{len(table)} paths in {time.perf_counter() - started:.1f} s"
            )
            yield table


def choose_paths(names: Sequence[str] | None) -> list[Path]:
    """Return the paths of this package and all peers whose names begin with one of `names`.

    Parameters
    ----------
    names : sequence of str, optional
        Default: all.

    Raises
    ------
    ParameterError
        If no path's name begins with one of them.
    """
    paths = [*own_paths(), *peer_paths()]
    for name in names or ():
        if not any(path.name.startswith(name) for path in paths):
            known = ", ".join(path.name for path in paths)
            raise ParameterError(f"no path begins with {name!r}; there are {known}.")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def _weight_of(case: GemmCase) -> GemmCase:
    return GemmCase(case.in_features, case.out_features, 1, case.bits, case.group_size)


Prepared = dict[str, tuple[Path, Rotation]]


def prepare_paths(
    paths: Sequence[Path], case: GemmCase, packed: PackedWeight
) -> tuple[Prepared, dict[str, str]]:
    """Make each path's copies of a weight.

    Returns
    -------
    tuple of (dict of str to (Path, Rotation), dict of str to str)
        What can be timed, and why the rest cannot.
    """
    reasons = {path.name: path.why_absent(case) for path in paths}
    usable = [path for path in paths if not reasons[path.name]]
    prepared: Prepared = {}
    for path in usable:
        copies = copies_needed(path.weight_bytes(case), n_paths=len(usable))
        try:
            prepared[path.name] = path, Rotation(path.prepare(packed, copies))
        except _PREPARE_ERRORS as error:
            line = str(error).strip().partition("\n")[0]
            reasons[path.name] = f"failed to prepare: {type(error).__name__}: {line}"
    return prepared, {name: reason for name, reason in reasons.items() if reason}


def time_case(
    case: GemmCase,
    packed: PackedWeight,
    prepared: Prepared,
    probes: dict[str, Probe],
    *,
    rounds: int = 11,
) -> pd.DataFrame:
    """Time the paths and probes of one case in turns and return its rows.

    Parameters
    ----------
    case : GemmCase
    packed : PackedWeight
        The weight that all copies are of.
    prepared : dict
        Of `prepare_paths`.
    probes : dict of str to Probe
        Those whose names begin with "read", and those of arithmetic.
    rounds : int

    Returns
    -------
    DataFrame
        As `measure_gemm` describes it.
    """
    x = np.random.default_rng(1).standard_normal((case.tokens, case.in_features), np.float32)
    checked = checked_tokens(case.tokens)
    exact = exact_product(x[checked], packed)
    turns: dict[str, Callable[[], Any]] = {f"probe {k}": p.call for k, p in probes.items()}
    errors, bursts, wake = {}, {}, {}
    for name, (path, rotation) in prepared.items():
        own = path.convert(x)
        errors[name] = relative_error(as_array(rotation.calls[-1](own))[checked], exact)
        bursts[name] = _burst(rotation, own)
        turns[name] = _repeat(rotation, own, bursts[name])
        if bursts[name] > 1:
            wake[name] = partial(rotation, own)
    # Threads of the path before must not spin on the processors of the next one, whose own are
    # awake, as they are inside a model.
    times = time_in_turns(turns, rounds=rounds, before_each=wait_for_idle_threads, wake=wake)
    # Reading at its median, as the paths are; arithmetic at its best: a product that another
    # program cut into is no ceiling.
    rates = {
        name: (probe.rate if name.startswith("read") else probe.best_rate)(times[f"probe {name}"])
        for name, probe in probes.items()
    }
    # Of the ways to read the one that was faster in this run is the ceiling.
    fastest = max((name for name in rates if name.startswith("read")), key=rates.__getitem__)
    rates = {"read": rates[fastest]} | {k: v for k, v in rates.items() if not k.startswith("read")}
    read, cache_bytes = times[f"probe {fastest}"], last_level_cache_bytes()
    per_call = {
        name: Timing(tuple(s / bursts[name] for s in times[name].samples_s)) for name in prepared
    }
    rows = []
    for name, (path, rotation) in prepared.items():
        row = figures(case, path, per_call[name], rates, error=errors[name])
        row |= {"copies": len(rotation.calls), "read_spread": read.spread}
        row["rotated_caches"] = len(rotation.calls) * row["weight_bytes"] / cache_bytes
        rows.append(row | {"is_noisy": per_call[name].is_noisy or read.is_noisy})
    return with_ratios(rows)


def _burst(rotation: Rotation, x: Any) -> int:
    started = time.perf_counter()
    rotation(x)
    wanted = math.ceil(_TURN_S / max(time.perf_counter() - started, 1e-9))
    return min(wanted, _MAX_BURST, len(rotation.calls))


def _repeat(rotation: Rotation, x: Any, count: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(count):
            rotation(x)

    return turn
