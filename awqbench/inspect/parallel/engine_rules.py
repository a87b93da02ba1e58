"""What inference engines ask of the slice of a 4-bit weight that one rank holds.

Each engine is a set of checks with the text that its user meets. The texts were read in the
source of vLLM 0.33.0 and of older versions; none of them names the layer, most no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from awqbench.errors import ParameterError
from awqbench.inspect.parallel.shape_types import ModelShapes
from awqbench.inspect.parallel.split_checks import (
    ALIGNED,
    CONFIG,
    NO_MESSAGE,
    NO_SCALES,
    Broken,
    Split,
    check_groups,
    check_tiles,
    check_words,
    merged,
)

# vLLM pads the vocabulary to a multiple of this before it is split.
VOCAB_MULTIPLE = 64
# Group sizes of the Marlin kernel; others run on the plain AWQ kernel.
MARLIN_GROUP_SIZES = (-1, 32, 64, 128)

_HEADS = (
    "Total number of attention heads ({heads}) must be divisible by tensor parallel size ({tp})."
)
_MARLIN = (
    "Weight {side}_size_per_partition = {size} is not divisible by {rule}. "
    "Consider reducing tensor_parallel_size or running with --quantization gptq."
)
_NO_KERNEL = "Failed to find a kernel that can implement the WNA16 linear layer. Reasons: {reason}"
_WNA16_GROUP = (
    "Weight input_size_per_partition={size} for layer '{layer}' is not divisible by "
    "group_size={group_size}. This happens when tensor_parallel_size splits the layer input into "
    "shards that are not a whole number of quant groups. Consider reducing tensor_parallel_size."
)


class EngineRules(NamedTuple):
    """An engine's checks.

    Parameters
    ----------
    name : str
        As in `ENGINES`.
    version : str
        What they were read in.
    check : callable
        From a `Split` to an iterator of `Broken`.
    """

    name: str
    version: str
    check: Callable[[Split], Iterator[Broken]]


def broken_rules(
    shapes: ModelShapes, tp_size: int, group_size: int, *, engine: str = "vllm"
) -> list[Broken]:
    """List every rule of an engine that a tensor parallel size and group size break.

    Parameters
    ----------
    shapes : ModelShapes
    tp_size, group_size : int
        `group_size` -1 stands for whole rows.
    engine : str
        A key of `ENGINES`.

    Returns
    -------
    list of Broken
        Rules of the whole model first.

    Raises
    ------
    ParameterError
        If a size is not positive, or there is no such engine.
    """
    if tp_size < 1 or (group_size < 1 and group_size != -1):
        raise ParameterError(
            f"tp_size {tp_size}, group_size {group_size}: need 1 or more; group_size may be -1, "
            "for whole rows."
        )
    check = require_engine(engine).check
    found = [*_head_rules(shapes, tp_size), *_vocabulary_rule(shapes, tp_size)]
    for linears in merged(shapes.linears):
        found += check(Split(linears, tp_size, group_size))
    return found


def require_engine(engine: str) -> EngineRules:
    """Return an engine's rules by name.

    Raises
    ------
    ParameterError
        If there is no such engine; lists them.
    """
    if engine not in ENGINES:
        raise ParameterError(f"no engine {engine!r}; choose one of {', '.join(ENGINES)}.")
    return ENGINES[engine]


def _head_rules(shapes: ModelShapes, tp_size: int) -> Iterator[Broken]:
    heads, kv_heads = shapes.num_attention_heads, shapes.num_key_value_heads
    text = _HEADS.format(heads=heads, tp=tp_size)
    if heads % tp_size:
        detail = f"num_attention_heads {heads} is not a multiple of tp_size {tp_size}"
        yield Broken(CONFIG, "heads", heads, tp_size, detail, text)
    bare = f"AssertionError (num_key_value_heads {kv_heads}, tensor parallel size {tp_size})"
    if kv_heads >= tp_size and kv_heads % tp_size:
        detail = f"num_key_value_heads {kv_heads} is not a multiple of tp_size {tp_size}"
        yield Broken(CONFIG, "heads", kv_heads, tp_size, detail, bare)
    if 0 < kv_heads < tp_size and tp_size % kv_heads:
        detail = f"tp_size {tp_size} is not a multiple of num_key_value_heads {kv_heads}"
        yield Broken(CONFIG, "heads", tp_size, kv_heads, detail, bare)


def _vocabulary_rule(shapes: ModelShapes, tp_size: int) -> Iterator[Broken]:
    padded = -(-shapes.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if padded % tp_size:
        detail = (
            f"vocab_size {shapes.vocab_size}, padded to {padded}, is not a multiple of "
            f"tp_size {tp_size}"
        )
        text = f"AssertionError: {padded} is not divisible by {tp_size}"
        yield Broken(CONFIG, "vocabulary", padded, tp_size, detail, text)


def _vllm(split: Split) -> Iterator[Broken]:
    """Marlin takes whole groups and pads its tiles; what it refuses meets the plain kernel."""
    on_marlin = split.group_size in MARLIN_GROUP_SIZES
    # With whole rows Marlin's own check passes, and a rank of a row-parallel linear then has
    # K / tp_size // K = 0 groups.
    yield from check_groups(split, NO_SCALES if split.group_size == -1 else ALIGNED)
    yield from check_words(split, "" if on_marlin else ALIGNED.format(side="output"))


def _vllm_marlin(split: Split) -> Iterator[Broken]:
    """Check in the order of the engine: outputs, inputs by tile, inputs by group."""
    tiles = (
        _MARLIN.format(side="input", size="{}", rule="min_thread_k = 128"),
        # Two spaces: as the engine prints it.
        _MARLIN.format(side="output", size="{}", rule=" min_thread_n = 64"),
    )
    yield from check_tiles(split, 128, 64, tiles)
    by_group = _MARLIN.format(side="input", size="{size}", rule="group_size = {group_size}")
    yield from check_groups(split, NO_SCALES if split.group_size == -1 else by_group)
    yield from check_words(split)


def _plain_awq(split: Split) -> Iterator[Broken]:
    yield from check_groups(split, ALIGNED)
    yield from check_words(split, ALIGNED.format(side="output"))


def _exllama(split: Split) -> Iterator[Broken]:
    """Exllama looks at the inputs of all ranks together; the loader at those of one."""
    size, total = split.group_size, split.linear.in_features
    if size == -1:
        reason = (
            "Group size (-1) must be positive, Exllama does not support channelwise quantization"
        )
        text = _NO_KERNEL.format(reason=reason)
        detail = "group_size -1 (whole rows) is not supported"
        for linear in split.linears:
            yield Broken(linear.name, "groups", -1, 1, detail, text, linear)
    elif total % size:
        reason = (
            f"Group size ({size}) does not evenly divide the number of input features ({total})"
        )
        yield from check_groups(split, _NO_KERNEL.format(reason=reason))
    else:
        yield from check_groups(split, _WNA16_GROUP)
    reason = (
        "Output features must be a multiple of the pack factor (32 / num_bits) so that we can "
        "correctly pack the zero points"
    )
    yield from check_words(split, _NO_KERNEL.format(reason=reason))


def _cpu(split: Split) -> Iterator[Broken]:
    text = "{side} size ({size}) not supported by CPUWNA16, supported sizes are multiples of 32"
    tiles = (text.format(side="Input", size="{}"), text.format(side="Output", size="{}"))
    yield from check_tiles(split, 32, 32, tiles)
    if split.group_size > 0 and split.group_size % 2:
        size, first = split.group_size, split.linear
        detail = f"group_size {size} is odd"
        yield Broken(first.name, "groups", size, 2, detail, NO_MESSAGE.format(what="scales"), first)
    yield from check_groups(split, NO_SCALES)
    yield from check_words(split)


ENGINES = {
    rules.name: rules
    for rules in (
        EngineRules("vllm", "vLLM 0.33, CUDA", _vllm),
        EngineRules("vllm-marlin", "older vLLM, awq_marlin", _vllm_marlin),
        EngineRules("awq", "vLLM, plain AWQ kernel", _plain_awq),
        EngineRules("exllama", "vLLM 0.33, Exllama, float16", _exllama),
        EngineRules("cpu", "vLLM 0.33, CPU", _cpu),
    )
}
