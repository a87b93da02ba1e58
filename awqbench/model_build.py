"""The skeleton of a Hugging Face causal LM, its chain of blocks, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.errors import TraceError

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint

# Tokens of the dry run that learns how the model calls its blocks: one sample, so that a
# model that takes the first item of a block's output is told from one that takes all.
_DRY_RUN_SHAPE = (1, 3)


class BlockCall(NamedTuple):
    """What the model passes to one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None  # the hidden states' own name, where they are not positional


Replacement = Callable[[int, "torch.Tensor", BlockCall], "torch.Tensor"]


def build_skeleton(ckpt: Checkpoint, *, dtype: torch.dtype) -> torch.nn.Module:
    """Build the model of a config with its weights on the meta device.

    Memory that torch would leave uninitialised goes to meta; what is computed (rotary
    frequencies, normalisers) is computed, since no file holds it.

    Parameters
    ----------
    ckpt : Checkpoint
        Only its config is read.
    dtype : torch.dtype
        Of the parameters.

    Raises
    ------
    TraceError
        If transformers does not know the architecture without remote code.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from awqbench.model_experts import unfuse_experts

    class EmptyIsMeta(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    try:
        config = CONFIG_MAPPING[ckpt.config["model_type"]].from_dict(ckpt.config)
        # transformers 4.56 renamed torch_dtype.
        setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
        with EmptyIsMeta():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise TraceError(
            f"{ckpt.path.name}: transformers cannot build a causal LM of model_type "
            f"{ckpt.config.get('model_type')!r} without code from the folder, which awqbench "
            f"never runs ({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "A newer transformers may know it."
        ) from error
    # Norms were made of ones, not left empty; meta tells what has yet to be read.
    for module in model.modules():
        for leaf, param in module._parameters.items():
            if param is not None and not param.is_meta:
                module._parameters[leaf] = torch.nn.Parameter(param.to("meta"), requires_grad=False)
    unfuse_experts(model)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def find_blocks(model: torch.nn.Module) -> tuple[str, list[torch.nn.Module]]:
    """Find the decoder layers of the text model: its path and the modules.

    Raises
    ------
    TraceError
        If no list of modules is as long as the config says.
    """
    from torch import nn

    config = model.config.get_text_config()
    expected = getattr(config, "num_hidden_layers", None)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    fitting = [(name, blocks) for name, blocks in lists if len(blocks) == expected]
    if not fitting:
        seen = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists) or "none"
        raise TraceError(
            f"{type(model).__name__} has no list of {expected} decoder layers, the "
            f"num_hidden_layers of its config; lists found: {seen}."
        )
    # A list inside each layer (experts) can be as long as the list of layers, never as large.
    name, blocks = max(fitting, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return name, list(blocks)


@contextmanager
def intercepted(
    blocks: list[torch.nn.Module], replacement: Replacement, *, as_tuple: bool
) -> Iterator[None]:
    """Let the model's forward run with `replacement` in place of its blocks.

    Parameters
    ----------
    blocks : list of torch.nn.Module
    replacement : callable
        Called with the block's number, the hidden states and the other arguments; returns
        the hidden states for the next block.
    as_tuple : bool
        Whether the model expects a block's output in a tuple.
    """
    import torch

    def forward(i: int, *args: Any, **kwargs: Any) -> Any:
        keyword = None if args else "hidden_states"
        if keyword and keyword not in kwargs:
            raise TraceError(f"block {i} is called without hidden_states")
        given = kwargs.pop(keyword) if keyword else args[0]
        output = replacement(i, given, BlockCall(args[1:], kwargs, keyword))
        return (output,) if as_tuple else output

    for i, block in enumerate(blocks):
        block.forward = partial(forward, i)
    try:
        with torch.no_grad():
            yield
    finally:
        for block in blocks:
            del block.forward


def takes_tuples(model: torch.nn.Module, blocks: list[torch.nn.Module], like: torch.Tensor) -> bool:
    """Find whether the model takes a block's output as a tensor or as a tuple.

    Parameters
    ----------
    model : torch.nn.Module
        The body of the model, without its head.
    blocks : list of torch.nn.Module
    like : (width,) torch.Tensor
        Has the width, dtype and device of embedded tokens.

    Raises
    ------
    TraceError
        If with neither form each block gets what the one before it gave, and nothing
        else that depends on it.
    """
    problems = []
    for as_tuple in (False, True):
        try:
            first, second = (
                _dry_run(model, blocks, like, as_tuple=as_tuple, seed=seed) for seed in (0, 1)
            )
        except (TraceError, TypeError, ValueError, LookupError, RuntimeError) as error:
            problems.append(str(error).split("\n")[0])
            continue
        if _same(first, second):
            return as_tuple
        problems.append("a block gets more from the blocks before it than hidden states")
    raise TraceError(
        f"{type(model).__name__} does not run as a chain of {len(blocks)} blocks: "
        f"{problems[0]}; or, with tuples between the blocks: {problems[1]}."
    )


def _dry_run(
    model: torch.nn.Module,
    blocks: list[torch.nn.Module],
    like: torch.Tensor,
    *,
    as_tuple: bool,
    seed: int,
) -> list[BlockCall]:
    """Run the model with noise for the blocks' outputs and return the blocks' arguments."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    outputs: list[torch.Tensor] = []
    calls: list[BlockCall] = []

    def step(i: int, given: Any, call: BlockCall) -> torch.Tensor:
        if i != len(calls):
            raise TraceError(f"block {i} is called where block {len(calls)} should be")
        if i and not (torch.is_tensor(given) and torch.equal(given, outputs[-1])):
            raise TraceError(f"block {i} does not get the output of block {i - 1}")
        calls.append(call)
        noise = torch.randn(given.shape, generator=generator)
        outputs.append(noise.to(given.device, given.dtype))
        return outputs[-1]

    embeds = like.expand(_DRY_RUN_SHAPE + like.shape)
    with intercepted(blocks, step, as_tuple=as_tuple):
        last = model(inputs_embeds=embeds, use_cache=False)[0]
    if len(calls) != len(blocks):
        raise TraceError(f"only {len(calls)} of {len(blocks)} blocks are called")
    if tuple(last.shape[:-1]) != _DRY_RUN_SHAPE:
        raise TraceError(f"the last block's output ends with shape {tuple(last.shape)}")
    return calls


def _same(first: Any, second: Any) -> bool:
    """Compare nested arguments; objects other than tensors and containers count as equal."""
    import torch

    if torch.is_tensor(first) and torch.is_tensor(second):
        return first.shape == second.shape and bool(torch.equal(first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second)
