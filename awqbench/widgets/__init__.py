"""Explorers for notebooks: controls beside a figure, one call each.

Every module has `explore(...)`, and `monitor` has `run(...)`: `layer_browser`, `what_if`,
`tensor_parallel`, `placement`, `roofline`, `xray`; they are imported when first used. They hold
no logic: numbers come from `awqbench.inspect` and `awqbench.quantize`, figures from
`awqbench.plots`. Where no front end runs widgets (papermill, nbconvert), the figure at the
first settings is shown.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = [
    "layer_browser",
    "monitor",
    "placement",
    "roofline",
    "tensor_parallel",
    "what_if",
    "xray",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'awqbench.widgets' has no attribute {name!r}")
    return import_module(f"awqbench.widgets.{name}")


def __dir__() -> list[str]:
    return __all__
