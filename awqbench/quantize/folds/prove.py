"""Proof of folds: outputs with and without, beside a negative control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError
from awqbench.quantize.folds.apply import Site, folded, joined, share_scales
from awqbench.quantize.folds.trace import block_probe

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.model import BlockRunner

# Scales from 1/2 to 2: enough to show a wrong fold, too little to overflow.
_LOG2_SCALE = 1.0
COLUMNS = ("block", "site", "prev_op", "kind", "difference", "control")


class Difference(NamedTuple):
    """Largest change of an output, as a fraction of its largest element.

    Parameters
    ----------
    folded : float
        With scales folded: rounding only, if the fold is right.
    control : float
        With the same scales and prev_op left alone: must be large.
    """

    folded: float
    control: float


def random_scales(site: Site, *, seed: int = 0) -> np.ndarray:
    """Draw foldable scales from 1/2 to 2, as a (K,) ndarray."""
    exponents = np.random.default_rng(seed).uniform(-_LOG2_SCALE, _LOG2_SCALE, site.in_features)
    return share_scales(site, np.exp2(exponents))


def site_difference(
    block: torch.nn.Module,
    site: Site,
    run: Callable[[torch.nn.Module], torch.Tensor],
    expected: torch.Tensor,
    *,
    seed: int = 0,
) -> Difference:
    """Fold random scales into one site and compare the block's output.

    Parameters
    ----------
    block : torch.nn.Module
        Float32 or wider; unchanged afterwards.
    site : Site
    run : callable
        Runs the block on a fixed input and returns its output.
    expected : torch.Tensor
        The output before folding.
    seed : int
    """
    scales = random_scales(site, seed=seed)
    with folded(block, site, scales):
        with_fold = run(block)
    with folded(block, site, scales, compensate=False):
        without = run(block)
    return Difference(change_of(with_fold, expected), change_of(without, expected))


def prove_folds(
    runner: BlockRunner,
    sites: Sequence[Sequence[Site]],
    *,
    tokens: torch.Tensor | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Fold random scales into every site, and compare block outputs and logits.

    Runs in float32, three times through the model, holding one block at a time.

    Parameters
    ----------
    runner : BlockRunner
    sites : sequence of sequence of Site
        For each block, as `trace_sites` gives them; sites without prev_op are passed over,
        and those that share scales are folded, and have their row, together.
    tokens : (n, seq) torch.Tensor of int64, optional
        Text to compare the logits on; 2 x 16 random tokens by default.
    seed : int

    Returns
    -------
    DataFrame
        One row for each site, then one of block -1 for the logits with all sites folded:
        block, site, prev_op, kind, difference, control (see `Difference`).

    Raises
    ------
    ParameterError
        If there are not as many entries in `sites` as blocks.
    """
    import pandas as pd
    import torch

    if len(sites) != runner.n_blocks:
        raise ParameterError(f"sites of {len(sites)} blocks for a model of {runner.n_blocks}.")
    runner = runner.in_dtype(torch.float32)
    rows = []
    states = [runner.embed(_random_tokens(runner, seed) if tokens is None else tokens)] * 3
    for i in range(runner.n_blocks):
        block = runner.load_block(i)
        run = block_probe(runner, i, seed=seed).together
        expected = run(block)
        foldable = [site for site in joined(sites[i]) if site.prev_op is not None]
        for site in foldable:
            difference = site_difference(block, site, run, expected, seed=seed)
            rows.append((i, site.name, site.prev_op, site.kind, *difference))
        for k, compensate in enumerate((None, True, False)):
            with ExitStack() as stack:
                for site in foldable if compensate is not None else ():
                    scales = random_scales(site, seed=seed)
                    stack.enter_context(folded(block, site, scales, compensate=compensate))
                states[k] = runner.run_block(block, i, states[k])
        del block
    plain, with_folds, without = (runner.head(state.hidden) for state in states)
    logits = (change_of(with_folds, plain), change_of(without, plain))
    rows.append((-1, "logits", None, None, *logits))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _random_tokens(runner: BlockRunner, seed: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, runner.vocabulary, (2, 16), generator=generator)


def change_of(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Return max abs(output - expected) / max abs(expected); NaN counts as infinite."""
    change = float((output - expected).abs().max() / expected.abs().max())
    return change if change == change else float("inf")
