"""What happens inside a block: its linears' inputs and the order of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockInputs, BlockRunner

# Samples of one token; half of them mirror the other half.
_ALONE_SAMPLES = 16
_TOGETHER_SHAPE = (2, 12)


class Probe(NamedTuple):
    """Two ways to run a block on a small input and get its output.

    Parameters
    ----------
    alone : callable
        On samples of one token. Attention then has one key to attend to, so that queries
        and keys have no effect and values pass through as they are: which row of a fused
        projection feeds which channel shows in one run.
    together : callable
        On samples of several tokens: what is found alone is proven here.
    """

    alone: Callable[[torch.nn.Module], torch.Tensor]
    together: Callable[[torch.nn.Module], torch.Tensor]


def block_probe(runner: BlockRunner, i: int, *, seed: int = 0) -> Probe:
    """Make a probe of block i that feeds it standard normal hidden states.

    Every token runs through every expert of a mixture, and the output depends on them all:
    what holds for the few that a small input reaches is then proven for each.

    Parameters
    ----------
    runner : BlockRunner
        In float32 or wider.
    i : int
    seed : int
    """
    from awqbench.model_experts import every_expert

    alone = runner.random_inputs(_ALONE_SAMPLES, 1, seed=seed)
    together = runner.random_inputs(*_TOGETHER_SHAPE, seed=seed)

    def run_on(inputs: BlockInputs, block: torch.nn.Module) -> torch.Tensor:
        with every_expert(block, mixed=True):
            return runner.run_block(block, i, inputs).hidden

    return Probe(partial(run_on, alone), partial(run_on, together))


class _SeenEnough(BaseException):
    """Ends a run of a block whose remaining modules are of no interest."""


class Trace(NamedTuple):
    """One run of a block.

    Parameters
    ----------
    groups : list of tuple of str
        Paths of linears that had the same input, in the order of their running.
    reads_block_input : set of str
        Linears whose input was the block's own.
    order : list of str
        Modules without children, and norms, as they began to run.
    calls : Counter
        How often each of them ran.
    """

    groups: list[tuple[str, ...]]
    reads_block_input: set[str]
    order: list[str]
    calls: Counter[str]


def trace_block(block: torch.nn.Module, run: Callable[[torch.nn.Module], Any]) -> Trace:
    """Run a block once and see which linears share an input."""
    from torch import nn

    order: list[str] = []
    block_input: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}  # also keeps memory from being used anew

    def keep(path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        order.append(path)
        if isinstance(module, nn.Linear) and path not in seen:
            seen[path] = _first_tensor(args, kwargs)

    def keep_block(module: nn.Module, args: tuple, kwargs: dict) -> None:
        block_input.append(_first_tensor(args, kwargs))

    leaves = {p: m for p, m in block.named_modules() if p and is_step(m)}
    handles = [block.register_forward_pre_hook(keep_block, with_kwargs=True)]
    for path, module in leaves.items():
        hook = _with_path(keep, path)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        run(block)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple, list[str]] = {}
    for path, tensor in seen.items():
        groups.setdefault(_place(tensor), []).append(path)
    own = {path for path, tensor in seen.items() if _place(tensor) == _place(block_input[0])}
    return Trace([tuple(group) for group in groups.values()], own, order, Counter(order))


def inputs_of(
    block: torch.nn.Module, paths: list[str], run: Callable[[torch.nn.Module], Any]
) -> dict[str, np.ndarray]:
    """Run a block until some of its linears were entered, and return what entered them.

    Returns
    -------
    dict of str to (tokens, K) ndarray of float64
    """
    found: dict[str, np.ndarray] = {}

    def keep(path: str, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        tensor = _first_tensor(args, kwargs).detach().double().cpu()
        found[path] = tensor.reshape(-1, tensor.shape[-1]).numpy().copy()
        if len(found) == len(paths):
            raise _SeenEnough

    handles = [
        block.get_submodule(path).register_forward_pre_hook(
            _with_path(keep, path), with_kwargs=True
        )
        for path in paths
    ]
    try:
        run(block)
    except _SeenEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def swapped(block: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Hold some parameters of a block replaced for a while."""
    before = {name: block.get_parameter(name).data for name in tensors}
    try:
        for name, tensor in tensors.items():
            block.get_parameter(name).data = tensor
        yield
    finally:
        for name, tensor in before.items():
            block.get_parameter(name).data = tensor


def is_norm(module: torch.nn.Module) -> bool:
    """Tell whether a module scales channels: it has a weight of one dimension."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1


def is_step(module: torch.nn.Module) -> bool:
    """Tell whether a module is one step of the computation."""
    return is_norm(module) or next(module.children(), None) is None


def _with_path(function: Callable, path: str) -> Callable:
    return lambda module, args, kwargs: function(path, module, args, kwargs)


def _first_tensor(args: tuple, kwargs: dict) -> torch.Tensor:
    import torch

    named = [kwargs[key] for key in ("hidden_states", "input") if key in kwargs]
    return next(t for t in (*args, *named, *kwargs.values()) if torch.is_tensor(t))


def _place(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return where a tensor's values lie: a reshaped view of the same values is the same."""
    start = tensor.untyped_storage().data_ptr()
    return (start, tensor.storage_offset(), tensor.numel(), tensor.shape[-1])
