"""awqbench: a Jupyter-first workbench for weight-only quantization of language models.

The public names below are imported when they are first used, so that ``import awqbench``
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "open_checkpoint": "awqbench.formats.checkpoint",
    "recognise": "awqbench.formats.recognise",
    "convert": "awqbench.formats.convert",
    "PackedWeight": "awqbench.packed",
    "quantize_weight": "awqbench.packed",
    "fake_quantize": "awqbench.grid",
    "available_backends": "awqbench.gemm",
    "QuantLinear": "awqbench.linear",
    "load_quantized": "awqbench.linear",
    "load_model": "awqbench.model_load",
    "text_tokens": "awqbench.text",
    "calibrate": "awqbench.quantize.calibrate",
    "load_stats": "awqbench.quantize.statistics.stats",
    "merge_stats": "awqbench.quantize.statistics.stats",
    "expert_coverage": "awqbench.quantize.statistics.experts",
    "Settings": "awqbench.quantize.settings",
    "search": "awqbench.quantize.search",
    "quantize_chatglm": "awqbench.quantize.chatglm",
    "fake_quantized": "awqbench.quantize.fake",
    "plant_outliers": "awqbench.quantize.plant",
    "perplexity": "awqbench.inspect.evaluate",
    "compare": "awqbench.inspect.evaluate",
    "first_divergence": "awqbench.inspect.evaluate",
    "xray": "awqbench.inspect.folders.xray",
    "suggest_bits": "awqbench.inspect.bits.suggest",
    "plan_tensor_parallel": "awqbench.inspect.parallel.plan",
    "plan_placement": "awqbench.inspect.placement.plan",
    "pad_checkpoint": "awqbench.inspect.parallel.padding",
    "doctor": "awqbench.inspect.doctor.card",
    "health": "awqbench.inspect.health",
    "activation_health": "awqbench.inspect.health",
    "explain": "awqbench.inspect.explain",
    "cast_figures": "awqbench.numerics",
    "machine_record": "awqbench.bench.machine",
}

# Rooms that are called like their main verb: ab.gemm(x, packed), ab.quantize(model, out).
_CALLABLE_ROOMS = ("gemm", "quantize")

__all__ = sorted([*_HOME, *_CALLABLE_ROOMS])


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_ROOMS:
        return import_module(f"awqbench.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'awqbench' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def load_ipython_extension(shell: Any) -> None:
    """Let ``%load_ext awqbench`` add the magic ``%awqbench explain``."""
    import_module("awqbench.magic").load_ipython_extension(shell)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
