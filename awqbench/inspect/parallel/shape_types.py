"""What is known of a linear from a config alone: its sizes, and how ranks share it.

A column-parallel linear gives each rank a slice of its outputs, a row-parallel one a slice of
its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from awqbench.errors import FormatError

COLUMN, ROW, REPLICATED = "column", "row", "replicated"


class Part(NamedTuple):
    """Outputs of a linear that are split among ranks on their own.

    Parameters
    ----------
    name : str
        What they are, such as ``"query"``.
    out_features : int
    head_size : int
        Above 0 for keys and values, whose heads are copied where ranks outnumber them.
    """

    name: str
    out_features: int
    head_size: int = 0


class LinearShape(NamedTuple):
    """A kind of linear: N out_features, K in_features, and how it is split.

    Parameters
    ----------
    name : str
        Module path; ``*`` stands for the index of a layer or an expert.
    parts : tuple of Part
        Outputs in order; several where the checkpoint holds them as one weight.
    in_features : int
    split : {"column", "row", "replicated"}
    fused : str
        Linear of the engine that this one is merged into, such as ``"qkv_proj"``.
    width_key : str
        Config key of the width that padding can change: the outputs of a column-parallel
        linear, the inputs of a row-parallel one; empty if none.
    multiple : int
        How many times that width, as for several shared experts in one weight.
    is_expert : bool
        Whether a router chooses it.
    count : int
        How many the model has.
    """

    name: str
    parts: tuple[Part, ...]
    in_features: int
    split: str
    fused: str = ""
    width_key: str = ""
    multiple: int = 1
    is_expert: bool = False
    count: int = 1

    @property
    def out_features(self) -> int:
        """N, of all parts together."""
        return sum(part.out_features for part in self.parts)

    @property
    def module(self) -> str:
        """Path without the last part, such as ``model.layers.*.mlp``."""
        return self.name.rpartition(".")[0]

    @property
    def role(self) -> str:
        """Last part of the name, such as ``down_proj``."""
        return self.name.rpartition(".")[2]


class Width(NamedTuple):
    """An inner width that a config key sets.

    Parameters
    ----------
    key : str
    value : int
        As the weights have it.
    config_factor : int
        What the config holds, divided by `value`: 2 for the first Qwen.
    """

    key: str
    value: int
    config_factor: int = 1


class ModelShapes(NamedTuple):
    """What decides how a model can be split.

    Parameters
    ----------
    model_type : str
    hidden_size : int
    vocab_size : int
        0 if the config does not say.
    num_attention_heads, num_key_value_heads : int
        0 key-value heads where they are compressed (multi-head latent attention).
    linears : tuple of LinearShape
    widths : dict of str to Width
        By config key.
    config_path : tuple of str
        Where in config.json the language model's keys are; empty for the top level.
    """

    model_type: str
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    linears: tuple[LinearShape, ...]
    widths: dict[str, Width]
    config_path: tuple[str, ...] = ()

    def with_widths(self, values: Mapping[str, int]) -> ModelShapes:
        """Return the shapes with other inner widths, as after padding."""
        widths = {k: w._replace(value=values.get(k, w.value)) for k, w in self.widths.items()}
        return self._replace(
            linears=tuple(_widen(linear, widths) for linear in self.linears), widths=widths
        )


def _widen(linear: LinearShape, widths: Mapping[str, Width]) -> LinearShape:
    if not linear.width_key:
        return linear
    size = linear.multiple * widths[linear.width_key].value
    if linear.split == ROW:
        return linear._replace(in_features=size)
    return linear._replace(parts=tuple(p._replace(out_features=size) for p in linear.parts))


class ConfigReader:
    """Read sizes from a config, and say which are missing.

    Parameters
    ----------
    config : mapping
        The language model's part of config.json.
    model_type : str
        For error texts.
    """

    def __init__(self, config: Mapping, model_type: str):
        self.config, self.model_type = config, model_type

    def sizes(self, *keys: str) -> list[int]:
        """Return positive integers by key.

        Raises
        ------
        FormatError
            Names every key that is missing, or one that is no positive integer.
        """
        missing = [key for key in keys if self.config.get(key) is None]
        if missing:
            raise FormatError(
                f"config.json (model_type {self.model_type!r}) has no {', '.join(missing)}; "
                "the shapes of its linears cannot be told without."
            )
        return [self._size(key) for key in keys]

    def _size(self, key: str) -> int:
        value = self.config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FormatError(f"config.json: {key} is {value!r}, not a positive integer.")
        return value

    def get(self, key: str, default: int) -> int:
        """Return a size, or a default where the key is absent, null or 0."""
        return self._size(key) if self.config.get(key) else default
