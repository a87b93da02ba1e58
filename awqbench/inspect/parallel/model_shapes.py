"""Every linear of a language model by its sizes, from config.json alone.

What is listed is the language model: a vision tower has a config of its own, and its layers
are not split nor quantized as these are.
"""

from __future__ import annotations

from collections.abc import Mapping

from awqbench.inspect.parallel.architectures import build_shapes
from awqbench.inspect.parallel.shape_types import ConfigReader, ModelShapes

# Where multimodal configs keep the language model's part.
_TEXT_CONFIGS = (
    ("text_config",),
    ("llm_config",),
    ("language_config",),
    ("thinker_config", "text_config"),
)


def language_config(config: Mapping) -> tuple[Mapping, tuple[str, ...]]:
    """Return the part of a config that describes the language model, and where it is."""
    for path in _TEXT_CONFIGS:
        part = config
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and part:
            return part, path
    return config, ()


def model_shapes(config: Mapping) -> ModelShapes:
    """List the linears of a language model from its config; no weight is needed.

    Parameters
    ----------
    config : mapping
        Content of config.json.

    Returns
    -------
    ModelShapes

    Raises
    ------
    FormatError
        If keys are missing, naming them, or the architecture is one whose linears do not
        follow from them.

    Examples
    --------
    >>> sizes = dict(hidden_size=8192, intermediate_size=49152, num_attention_heads=64)
    >>> shapes = model_shapes({"model_type": "qwen", "num_hidden_layers": 80, **sizes})
    >>> shapes.widths["intermediate_size"]
    Width(key='intermediate_size', value=24576, config_factor=2)
    """
    part, path = language_config(config)
    model_type = str(part.get("model_type") or config.get("model_type") or "")
    return build_shapes(ConfigReader(part, model_type))._replace(config_path=path)
