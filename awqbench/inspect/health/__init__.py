"""Numeric health of a model: what a cast would do to its weights, and its activations' room.

What users call "scale overflow" has two ends. Weights flush to zero, and where a whole
group does, formulas that divide by the group's largest weight divide by zero; activations
grow past the largest number. Both ends are counted here, tensor by tensor.
"""

from awqbench.inspect.health.activations import VERDICTS, activation_health, layer_verdicts
from awqbench.inspect.health.patterns import SHORT_NAMES, CastThresholds, cast_thresholds
from awqbench.inspect.health.scan import health, is_linear_weight, tensor_health

__all__ = [
    "SHORT_NAMES",
    "VERDICTS",
    "CastThresholds",
    "activation_health",
    "cast_thresholds",
    "health",
    "is_linear_weight",
    "layer_verdicts",
    "tensor_health",
]
