"""Known error texts of quantization tools and engines, by subject."""

from __future__ import annotations

from awqbench.inspect.known import (
    devices,
    engines,
    loading,
    memory,
    models,
    numerics,
    shapes,
    tensor_parallel,
)
from awqbench.inspect.known.pain import Pain

__all__ = ["PAINS", "Pain"]

PAINS: tuple[Pain, ...] = (
    *numerics.PAINS,
    *tensor_parallel.PAINS,
    *shapes.PAINS,
    *memory.PAINS,
    *devices.PAINS,
    *loading.PAINS,
    *engines.PAINS,
    *models.PAINS,
)
