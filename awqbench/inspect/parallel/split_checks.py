"""The slices of 4-bit linears that one rank holds, and the checks that engines make of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from awqbench.inspect.parallel.shape_types import COLUMN, ROW, LinearShape, Part

# The AWQ layout packs this many 4-bit codes of neighbouring outputs in a word of 32 bits.
OUTPUTS_IN_WORD = 8
CONFIG = "config.json"
ALIGNED = (
    "The {side} size is not aligned with the quantized weight shape. "
    "This can be caused by too large tensor parallel size."
)
# A rule that the engine does not check.
NO_MESSAGE = "(no message: the engine does not check this, and would read the wrong {what})"
NO_SCALES = NO_MESSAGE.format(what="scales")
# What a user of a mixture of experts meets, whose slices go to another kernel.
_MOE = "size_k must divisible by BLOCK_SIZE_K"


class Broken(NamedTuple):
    """A rule that a split breaks.

    Parameters
    ----------
    layer : str
        Linear, or ``"config.json"`` for a rule of the whole model.
    rule : {"heads", "vocabulary", "groups", "words", "tiles"}
    number, multiple_of : int
        What one rank would hold, and what it has to be a multiple of.
    detail : str
        The same in words.
    error_text : str
        What the engine's user reads.
    linear : LinearShape, optional
        None for a rule of the whole model.
    """

    layer: str
    rule: str
    number: int
    multiple_of: int
    detail: str
    error_text: str
    linear: LinearShape | None = None

    @property
    def sentence(self) -> str:
        """Layer, number and rule."""
        return self.detail if self.layer == CONFIG else f"{self.layer}: {self.detail}"


class Split(NamedTuple):
    """The linears that an engine merges into one, over ranks.

    Parameters
    ----------
    linears : tuple of LinearShape
        One, or those with the same `fused` in one module.
    tp_size, group_size : int
        `group_size` -1 stands for whole rows.
    """

    linears: tuple[LinearShape, ...]
    tp_size: int
    group_size: int

    @property
    def linear(self) -> LinearShape:
        """The first of them."""
        return self.linears[0]

    @property
    def ranks(self) -> int:
        """Ranks that share the inputs: 1 but for a row-parallel linear."""
        return self.tp_size if self.linear.split == ROW else 1

    @property
    def in_features(self) -> int:
        """K that a rank holds."""
        return self.linear.in_features // self.ranks

    @property
    def out_features(self) -> int:
        """N that a rank holds, of all linears together."""
        return sum(share_of(part, lin, self.tp_size) for lin in self.linears for part in lin.parts)


def share_of(part: Part, linear: LinearShape, tp_size: int) -> int:
    """Return the outputs of a part that a rank holds; few key-value heads are copied."""
    if linear.split != COLUMN:
        return part.out_features
    if part.head_size and part.out_features // part.head_size < tp_size:
        return part.head_size
    return part.out_features // tp_size


def merged(linears: tuple[LinearShape, ...]) -> list[tuple[LinearShape, ...]]:
    """Group linears as an engine merges them: q, k and v; gate and up."""
    units: dict[tuple[str, str], list[LinearShape]] = {}
    for linear in linears:
        key = (linear.module, linear.fused) if linear.fused else (linear.name, "")
        units.setdefault(key, []).append(linear)
    return [tuple(unit) for unit in units.values()]


def check_inputs(split: Split, linear: LinearShape, rule: str, divisor: int, what: str, text: str):
    """Check that the inputs of a rank are a multiple of something."""
    total, ranks, size = linear.in_features, split.ranks, split.in_features
    broken = Broken(linear.name, rule, size, divisor, "", text, linear)
    if total % ranks:
        detail = f"in_features {total} is not a multiple of tp_size {ranks}"
        yield broken._replace(number=total, multiple_of=ranks, detail=detail)
    elif size % divisor:
        shown = f"in_features {total}" + (f" / {ranks} = {size}" if ranks > 1 else "")
        detail = f"{shown} is not a multiple of {what} (remainder {size % divisor})"
        yield broken._replace(detail=detail)


def check_groups(split: Split, text: str) -> Iterator[Broken]:
    """Check that a rank holds whole groups; of each linear, as each is stored apart."""
    for linear in split.linears:
        group_size = linear.in_features if split.group_size == -1 else split.group_size
        shown = text.format(
            side="input", size=split.in_features, layer=linear.name, group_size=group_size
        )
        if linear.is_expert:
            shown = _MOE
        yield from check_inputs(
            split, linear, "groups", group_size, f"group_size {group_size}", shown
        )


def check_words(split: Split, text: str = "") -> Iterator[Broken]:
    """Check that each part of the outputs is cut between packed words.

    Engines check the sum of merged linears at most; the slices are still read by the word.
    """
    if not text or split.out_features % OUTPUTS_IN_WORD == 0:
        text = NO_MESSAGE.format(what="words")
    for linear in split.linears:
        for part in linear.parts:
            yield from _part_words(split, linear, part, text)


def _part_words(split: Split, linear: LinearShape, part: Part, text: str) -> Iterator[Broken]:
    share, ranks = share_of(part, linear, split.tp_size), split.tp_size
    name = f"the {part.name} part of out_features" if len(linear.parts) > 1 else "out_features"
    broken = Broken(linear.name, "words", share, OUTPUTS_IN_WORD, "", text, linear)
    is_cut = linear.split == COLUMN and share != part.head_size
    shown = f"{name} {part.out_features}" + (
        f" / {ranks} = {share}" if is_cut and ranks > 1 else ""
    )
    if is_cut and part.out_features % ranks:
        detail = f"{name} {part.out_features} is not a multiple of tp_size {ranks}"
        yield broken._replace(number=part.out_features, multiple_of=ranks, detail=detail)
    elif share % OUTPUTS_IN_WORD:
        detail = f"{shown} is not a multiple of {OUTPUTS_IN_WORD}, the codes in a packed word"
        yield broken._replace(detail=detail)


def check_tiles(split: Split, in_multiple: int, out_multiple: int, texts: tuple[str, str]):
    """Check the sizes of a kernel's tiles, on linears as merged; experts have other kernels."""
    if split.linear.is_expert:
        return
    size, total = split.in_features, split.out_features
    first = split.linear
    yield from check_inputs(
        split, first, "tiles", in_multiple, str(in_multiple), texts[0].format(size)
    )
    if total % out_multiple:
        name = first.fused or first.role
        detail = f"{name} has {total} outputs on a rank, not a multiple of {out_multiple}"
        text = texts[1].format(total)
        yield Broken(first.name, "tiles", total, out_multiple, detail, text, first)
