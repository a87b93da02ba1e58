"""Which norm or linear can absorb which linears' input scales: traced, probed, proven.

There is no table of architectures. A block runs on a small input; linears that read the
same tensor form a site; modules that feed it row by row are found by probing; and a fold
counts only if the block's output stays the same with it and changes without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import TraceError
from awqbench.quantize.folds.apply import Site, folded
from awqbench.quantize.folds.experts import by_expert, copies, loose_readers, one_for_all
from awqbench.quantize.folds.match import Match, find_matches
from awqbench.quantize.folds.prove import change_of, random_scales, site_difference
from awqbench.quantize.folds.trace import Probe, Trace, block_probe, is_norm, trace_block

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.model import BlockRunner

# A right fold changes the output by rounding only: some 1e-6 of its largest element in
# float32. Beside that it must change far less than the negative control, since one huge
# residual channel can hide a wrong fold.
_MAX_CHANGE = 1e-5
_MAX_OF_CONTROL = 1e-2
REPORT_COLUMNS = (
    "site",
    "linears",
    "in_features",
    "prev_op",
    "kind",
    "foldable",
    "free",
    "reason",
)
_NOT_A_NONLINEARITY = ("Dropout", "Identity", "Rotary")


class SiteFinder:
    """Finds the sites of a model's blocks; blocks of one kind are probed once.

    Of one kind are blocks of the same class with parameters of the same shapes.

    Parameters
    ----------
    runner : BlockRunner
        Of any dtype: probing itself runs in float32.
    seed : int
    """

    def __init__(self, runner: BlockRunner, *, seed: int = 0) -> None:
        import torch

        self._runner = runner.in_dtype(torch.float32)
        self._is_same = self._runner is runner
        self._seed = seed
        self._known: dict[tuple, list[Site]] = {}

    def sites(self, i: int, block: torch.nn.Module | None = None) -> list[Site]:
        """Return the sites of block i.

        Parameters
        ----------
        i : int
        block : torch.nn.Module, optional
            Block i as loaded, to save reading it again where the runner is in float32.
        """
        locked = self._runner.shared_outside(i)
        kind = (self._runner.block_kind(i), locked)
        if kind not in self._known:
            if block is None or not self._is_same:
                block = self._runner.load_block(i)
            probe = block_probe(self._runner, i, seed=self._seed)
            self._known[kind] = find_sites(block, probe, locked=locked)
        return self._known[kind]


def trace_sites(runner: BlockRunner, *, seed: int = 0) -> list[list[Site]]:
    """Find the sites of every block of a model.

    Returns
    -------
    list of list of Site
        For each block.
    """
    finder = SiteFinder(runner, seed=seed)
    return [finder.sites(i) for i in range(runner.n_blocks)]


def find_sites(block: torch.nn.Module, probe: Probe, *, locked: Iterable[str] = ()) -> list[Site]:
    """Find a block's sites, and for each the module that can absorb its scales.

    Parameters
    ----------
    block : torch.nn.Module
        Float32 or wider; unchanged afterwards.
    probe : Probe
    locked : iterable of str
        Parameters of the block that other parts of the model use too.

    Returns
    -------
    list of Site
        Every nn.Linear of the block is in one; in the order of their running.

    Raises
    ------
    TraceError
        If the block is in a narrower dtype than float32, or gives NaN on the probe.
    """
    expected = _check_probe(block, probe)
    locked = set(locked) | _shared_parameters(block)
    trace = trace_block(block, probe.together)
    probed = one_for_all(block, trace)
    matches = find_matches(block, probe, probed, locked=locked)
    sites = []
    for group in probed.groups:
        width = block.get_submodule(group[0]).in_features
        site = Site(group[0], group, width)
        obstacle = _obstacle(site, trace, locked)
        if obstacle:
            site = site._replace(reason=obstacle)
        else:
            readers = loose_readers(block, site, locked)
            site = _proven(block, site, probe, expected, matches[site.name], readers=readers)
            if site.prev_op is None:
                site = site._replace(reason=site.reason or _reason(block, site, trace))
        sites += by_expert(site)
        sites += _proven_copies(block, list(copies(block, site)), probe, expected)
    position = {path: k for k, path in reversed(list(enumerate(trace.order)))}
    sites.sort(key=lambda site: position[site.name])
    return sites + _unreached(block, trace)


def fold_report(sites: Sequence[Site]) -> pd.DataFrame:
    """Return what can be folded, for reading: one row for each site.

    Columns: site, linears, in_features, prev_op, kind, foldable (channels), free (scales
    that can be chosen independently), reason.
    """
    import pandas as pd

    rows = []
    for site in sites:
        source = np.array([-1]) if site.source is None else site.source
        foldable = source[source >= 0]
        shown = (site.name, ", ".join(site.linears), site.in_features, site.prev_op, site.kind)
        rows.append((*shown, foldable.size, np.unique(foldable).size, site.reason))
    return pd.DataFrame(rows, columns=list(REPORT_COLUMNS))


def _check_probe(block: torch.nn.Module, probe: Probe) -> torch.Tensor:
    """Return the block's output on several tokens, if the probe can be trusted."""
    narrow = [n for n, p in block.named_parameters() if p.element_size() < 4]
    if narrow:
        raise TraceError(
            f"{narrow[0]} is {block.get_parameter(narrow[0]).dtype}: folds are found in "
            "float32, where rounding cannot be taken for a change; see BlockRunner.in_dtype."
        )
    output = probe.together(block)
    if not bool(output.isfinite().all()):
        raise TraceError(
            "the block gives NaN or inf on standard normal input: look at its weights with "
            "health() first."
        )
    return output


def _shared_parameters(block: torch.nn.Module) -> set[str]:
    names: dict[int, list[str]] = {}
    for name, param in block.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def _obstacle(site: Site, trace: Trace, locked: set[str]) -> str:
    """Say what forbids scaling a site's columns, or ""."""
    for linear in site.linears:
        if f"{linear}.weight" in locked:
            return f"{linear} shares its weight with another module, which would be scaled too."
        if trace.calls[linear] > 1:
            return (
                f"{linear} runs {trace.calls[linear]} times in the block, on different inputs "
                "that would need the same scales."
            )
    return ""


def _proven(
    block: torch.nn.Module,
    site: Site,
    probe: Probe,
    expected: torch.Tensor,
    matches: list[Match],
    *,
    readers: tuple[str, ...] = (),
) -> Site:
    """Return the site with its first match that holds, or with why the best one does not.

    Where `readers` may read the input too, each match is tried without and with them.
    """
    failed = ""
    for match, others in product(matches, dict.fromkeys(((), readers))):
        candidate = site._replace(
            prev_op=match.prev_op,
            kind=match.kind,
            source=match.source,
            reason=_partial(match),
            readers=others,
        )
        change, control = site_difference(block, candidate, probe.together, expected)
        if _holds(change, control):
            return candidate
        failed = failed or (
            f"{match.prev_op} feeds more than {', '.join(site.linears)}: with scales folded "
            f"into it the block's output changes by {change:.2g} of its size."
            if control > _MAX_CHANGE
            else f"scaling {site.name} does not change the block's output, so that no fold "
            "can be proven."
        )
    return site._replace(reason=failed)


def _holds(change: float, control: float) -> bool:
    return change <= _MAX_CHANGE and change < _MAX_OF_CONTROL * control


def _proven_copies(
    block: torch.nn.Module, sites: list[Site], probe: Probe, expected: torch.Tensor
) -> list[Site]:
    """Prove the folds of experts that were not probed themselves, all in one run."""
    if not sites or sites[0].prev_op is None:
        return sites
    outputs = []
    for compensate in (True, False):
        with ExitStack() as stack:
            for seed, site in enumerate(sites):
                scales = random_scales(site, seed=seed)
                stack.enter_context(folded(block, site, scales, compensate=compensate))
            outputs.append(probe.together(block))
    if _holds(*(change_of(output, expected) for output in outputs)):
        return sites
    why = "the fold that holds in the first expert does not hold in all others."
    return [s._replace(prev_op=None, kind=None, source=None, reason=why) for s in sites]


def _partial(match: Match) -> str:
    missing = int((match.source < 0).sum())
    if not missing:
        return ""
    silent = min(match.silent, missing)
    parts = []
    if silent:
        parts.append(f"{silent} carried nothing in the probe")
    if missing > silent:
        parts.append(f"{missing - silent} are not fed by one row of {match.prev_op}")
    return f"{missing} of {match.source.size} channels keep scale 1: {' and '.join(parts)}."


def _reason(block: torch.nn.Module, site: Site, trace: Trace) -> str:
    """Say why nothing absorbs a site's scales, in terms of what ran before it."""
    from torch import nn

    if site.name in trace.reads_block_input:
        return f"no norm before {site.name}: it reads the block's input as it is (post-norm block)."
    before = trace.order[: trace.order.index(site.name)]
    linears = [p for p in before if isinstance(block.get_submodule(p), nn.Linear)]
    for path in reversed(before):
        module = block.get_submodule(path)
        kind = type(module).__name__
        if any(word in kind for word in _NOT_A_NONLINEARITY):
            continue
        if isinstance(module, nn.Linear):
            break
        if is_norm(module):
            return (
                f"no norm before {site.name}: what {path} gives is added to the residual "
                "stream first (post-norm block)."
            )
        if next(module.parameters(), None) is None:
            if "Norm" in kind:
                return f"the norm before {site.name} ({kind}) has no weight to absorb scales."
            after = f" between {linears[-1]} and {site.name}" if linears else f" before {site.name}"
            return f"{kind}{after} is not linear: no scale passes through it."
    source = linears[-1] if linears else "the block's input"
    return f"no scale passes unchanged from {source} to {site.name}, and no norm is between."


def _unreached(block: torch.nn.Module, trace: Trace) -> list[Site]:
    """Return the linears that the probe did not run, each as a site of its own."""
    from torch import nn

    return [
        Site(path, (path,), module.in_features, reason=f"the probe did not reach {path}.")
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear) and not trace.calls[path]
    ]
