"""The sizes of models that people split over GPUs, and what fits of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from awqbench.inspect.parallel.engine_rules import broken_rules
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.parallel.padding_plan import padding_plan
from awqbench.inspect.parallel.shape_types import ModelShapes

if TYPE_CHECKING:
    import pandas as pd


def _config(hidden_size: int, width: int, heads: int, kv_heads: int, **more) -> dict:
    sizes = {
        "model_type": "qwen2",
        "hidden_size": hidden_size,
        "intermediate_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 4,
        "vocab_size": 152064,
    }
    return sizes | more


# What decides a split, as in each model's config.json; the number of layers does not. Heads
# of the 13 B and 14 B models, of DeepSeek-V2-Lite and of Qwen3-30B-A3B, and the latter's expert
# width, are from memory.
KNOWN_CONFIGS = {
    "Qwen-72B": _config(8192, 49152, 64, 64, model_type="qwen"),
    "Qwen1.5-72B": _config(8192, 24576, 64, 64),
    "Qwen2-72B": _config(8192, 29568, 64, 8),
    "Qwen2-72B, padded": _config(8192, 29696, 64, 8),
    "Qwen1.5-32B": _config(5120, 27392, 40, 8),
    "Qwen2.5-32B": _config(5120, 27648, 40, 8),
    "Qwen-14B": _config(5120, 27392, 40, 40, model_type="qwen"),
    "Llama-2-13B": _config(5120, 13824, 40, 40, model_type="llama", vocab_size=32000),
    "Qwen2.5-14B": _config(5120, 13824, 40, 8),
    "Qwen2-7B": _config(3584, 18944, 28, 4),
    "DeepSeek-V2-Lite": _config(
        2048,
        10944,
        16,
        16,
        model_type="deepseek_v2",
        vocab_size=102400,
        moe_intermediate_size=1408,
        n_routed_experts=64,
        n_shared_experts=2,
        first_k_dense_replace=1,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    "Qwen3-30B-A3B": _config(
        2048,
        6144,
        32,
        4,
        model_type="qwen3_moe",
        head_dim=128,
        num_experts=128,
        moe_intermediate_size=768,
    ),
    "Mixtral-8x7B": _config(
        4096, 14336, 32, 8, model_type="mixtral", vocab_size=32000, num_local_experts=8
    ),
}


def known_models_table(
    tp_sizes: Iterable[int] = (1, 2, 4, 8),
    group_sizes: Iterable[int] = (128, 64, 32),
    *,
    engine: str = "vllm",
) -> pd.DataFrame:
    """Tell which tensor parallel sizes fit each known model.

    Parameters
    ----------
    tp_sizes, group_sizes : iterable of int
    engine : str
        A key of `awqbench.inspect.parallel.engine_rules.ENGINES`.

    Returns
    -------
    DataFrame
        By `model`: `in_config` and `width` of the first MLP, its prime `factors`, `heads`
        (query/key-value), `g128` and so on (the tensor parallel sizes that fit), and `pad_to`,
        the width to pad to for the largest tensor parallel and group size.
    """
    import pandas as pd

    tp_sizes, group_sizes = tuple(tp_sizes), tuple(group_sizes)
    rows = []
    for name, config in KNOWN_CONFIGS.items():
        shapes = model_shapes(config)
        width = next(iter(shapes.widths.values()))
        row = {
            "model": name,
            "in_config": width.value * width.config_factor,
            "width": width.value,
            "factors": factors(width.value),
            "heads": f"{shapes.num_attention_heads}/{config['num_key_value_heads']}",
        }
        for group_size in group_sizes:
            row[f"g{group_size}"] = _fitting(shapes, tp_sizes, group_size, engine) or "none"
        plan = padding_plan(shapes, max(tp_sizes), max(group_sizes), engine=engine)
        now, new = plan.widths[width.key]
        rows.append(row | {"pad_to": str(new) if new != now else "-"})
    return pd.DataFrame(rows).set_index("model")


def _fitting(shapes: ModelShapes, tp_sizes: tuple[int, ...], group_size: int, engine: str) -> str:
    fit = [n for n in tp_sizes if not broken_rules(shapes, n, group_size, engine=engine)]
    return ", ".join(map(str, fit))


def factors(number: int) -> str:
    """Write a number by its primes.

    Examples
    --------
    >>> factors(29568)
    '2^7·3·7·11'
    """
    parts, prime = [], 2
    while number > 1:
        power = 0
        while number % prime == 0:
            number, power = number // prime, power + 1
        if power:
            parts.append(f"{prime}^{power}" if power > 1 else str(prime))
        prime += 1
    return "·".join(parts)
