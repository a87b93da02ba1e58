"""Find a language model's linears among a folder's tensors, by role and by shape.

Names alone would take a vision tower's ``mlp.gate_proj`` for the language model's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from awqbench.errors import FormatError
from awqbench.inspect.parallel.shape_types import LinearShape, ModelShapes

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint

# Parts of a module path that belong to another model in the same folder.
_OTHER_TOWERS = re.compile(
    r"(^|\.)(visual|vision\w*|vit|vpm|image\w*|audio\w*|speech\w*|talker|code2wav|resampler)\."
)


def find_linears(shapes: ModelShapes, ckpt: Checkpoint) -> dict[str, LinearShape]:
    """Return each linear of the language model by its module path.

    Parameters
    ----------
    shapes : ModelShapes
    ckpt : Checkpoint
        Full precision, or in the AWQ or GPTQ layout.

    Returns
    -------
    dict of str to LinearShape
        In the order of the tensors.

    Raises
    ------
    FormatError
        If a linear is there in another shape than the config says.
    """
    patterns = [(_pattern(linear), linear) for linear in shapes.linears]
    found: dict[str, LinearShape] = {}
    others: dict[str, str] = {}
    for name, shape in _linear_shapes(ckpt).items():
        linear = _role_of(name, patterns)
        if linear is None:
            continue
        expected = (linear.out_features, linear.in_features)
        if shape == expected:
            found[name] = linear
        elif f"{name}.weight" in ckpt.tensors:  # packed sizes are sure in two layouts only
            text = f"{name} is {shape}, and config.json says {expected}"
            others.setdefault(linear.name, text)
    there = {linear.name for linear in found.values()}
    wrong = [text for name, text in others.items() if name not in there]
    if wrong:
        raise FormatError(f"{ckpt.path.name}: {wrong[0]} (out_features, in_features).")
    return found


def with_names_of(shapes: ModelShapes, ckpt: Checkpoint) -> ModelShapes:
    """Name each kind of linear by the first one in a folder; checks the shapes on the way.

    Raises
    ------
    FormatError
        As `find_linears`.
    """
    first: dict[str, str] = {}
    for name, linear in find_linears(shapes, ckpt).items():
        first.setdefault(linear.name, name)
    named = tuple(lin._replace(name=first.get(lin.name, lin.name)) for lin in shapes.linears)
    return shapes._replace(linears=named)


def _pattern(linear: LinearShape) -> re.Pattern:
    """Match a linear by its path below the list of layers: what is above differs by release."""
    layers = re.search(r"[^.]+\.\*", linear.name)
    tail = linear.name[layers.start() :]
    return re.compile(r"(?:.*\.)?" + re.escape(tail).replace(r"\*", r"\d+"))


def _role_of(name: str, patterns) -> LinearShape | None:
    if _OTHER_TOWERS.search(name):
        return None
    return next((linear for pattern, linear in patterns if pattern.fullmatch(name)), None)


def _linear_shapes(ckpt: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return (N, K) of every linear, packed ones by their true size."""
    found = {}
    for tensor, info in ckpt.tensors.items():
        name, _, kind = tensor.rpartition(".")
        if kind == "weight" and len(info.shape) == 2:
            found[name] = tuple(info.shape)
        elif kind == "qweight" and f"{name}.scales" in ckpt.tensors and len(info.shape) == 2:
            found[name] = _packed_shape(ckpt, name)
    return found


def _packed_shape(ckpt: Checkpoint, name: str) -> tuple[int, int]:
    """Return N and K of a packed linear; AWQ packs codes along N, GPTQ along K."""
    rows, columns = ckpt.tensors[f"{name}.qweight"].shape
    out_features = ckpt.tensors[f"{name}.scales"].shape[-1]
    if columns != out_features:
        return out_features, rows
    return out_features, rows * 32 // ckpt.quantization.bits
