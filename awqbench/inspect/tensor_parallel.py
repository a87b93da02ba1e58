"""Does a quantized model split over ranks? Group sizes, packed words and heads, by headers.

A column-parallel linear (q, k, v, gate, up) gives each rank a slice of its outputs, a
row-parallel one (o, down) a slice of its inputs. A slice of inputs must hold whole groups,
a slice of outputs whole 32-bit words of codes, and attention heads stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint

# A linear's part in tensor parallelism, by the last part of its name.
ROW_PARALLEL = ("o_proj", "down_proj")
KV_PROJECTIONS = ("k_proj", "v_proj")
COLUMN_PARALLEL = ("q_proj", *KV_PROJECTIONS, "gate_proj", "up_proj", "gate_up_proj", "qkv_proj")
# The AWQ layout packs this many 4-bit codes of neighbouring outputs in a word.
OUTPUTS_IN_WORD = 8


class LinearShape(NamedTuple):
    """A linear by name and size; K in_features, N out_features."""

    name: str
    out_features: int
    in_features: int

    @property
    def role(self) -> str:
        """Last part of the name, such as ``down_proj``."""
        return self.name.rpartition(".")[2]


class Heads(NamedTuple):
    """Attention heads of a model."""

    query: int
    key_value: int
    size: int


def tensor_parallel_fit(
    ckpt_or_config: Checkpoint | Mapping,
    tp_sizes: Iterable[int] = (1, 2, 4, 8),
    group_sizes: Iterable[int] = (128, 64, 32),
) -> pd.DataFrame:
    """Tell which group sizes a 4-bit model can have for each tensor parallel size.

    Parameters
    ----------
    ckpt_or_config : Checkpoint or mapping
        A model folder, or the content of its config.json.
    tp_sizes : iterable of int
        Ranks.
    group_sizes : iterable of int
        -1 means whole rows.

    Returns
    -------
    DataFrame
        `tp_size`, `group_size`, `fits`, `reason`: the first rule that is broken, with layer
        and number, and how many more there are; empty where it fits.
    """
    import pandas as pd

    rows = []
    group_sizes = tuple(group_sizes)
    for tp_size in tp_sizes:
        for group_size in group_sizes:
            broken = tensor_parallel_problems(ckpt_or_config, tp_size, group_size)
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            rows.append(
                {
                    "tp_size": tp_size,
                    "group_size": group_size,
                    "fits": not broken,
                    "reason": broken[0] + more if broken else "",
                }
            )
    return pd.DataFrame(rows)


def tensor_parallel_problems(
    ckpt_or_config: Checkpoint | Mapping, tp_size: int, group_size: int
) -> list[str]:
    """List every rule that a tensor parallel size and group size break.

    Parameters
    ----------
    ckpt_or_config : Checkpoint or mapping
    tp_size, group_size : int

    Returns
    -------
    list of str
        Each with layer, number and rule; linears of one shape and role are named once.
    """
    is_config = isinstance(ckpt_or_config, Mapping)
    config = ckpt_or_config if is_config else ckpt_or_config.config
    heads = _heads(config)
    linears = _from_config(config, heads) if is_config else _from_headers(ckpt_or_config)
    found = list(_head_problems(heads, tp_size))
    for linear in linears:
        check = _row_problem if linear.role in ROW_PARALLEL else _column_problem
        problem = check(linear, tp_size, group_size, heads)
        if problem:
            found.append(f"{linear.name}: {problem}")
    return found


def _head_problems(heads: Heads, tp_size: int) -> Iterator[str]:
    if heads.query % tp_size:
        yield f"num_attention_heads {heads.query} is not a multiple of tp_size {tp_size}"
    if heads.key_value >= tp_size and heads.key_value % tp_size:
        yield f"num_key_value_heads {heads.key_value} is not a multiple of tp_size {tp_size}"
    if heads.key_value < tp_size and tp_size % heads.key_value:
        yield f"tp_size {tp_size} is not a multiple of num_key_value_heads {heads.key_value}"


def _row_problem(linear: LinearShape, tp_size: int, group_size: int, _heads: Heads) -> str:
    in_features = linear.in_features
    group_size = in_features if group_size == -1 else group_size
    if in_features % tp_size:
        return f"in_features {in_features} is not a multiple of tp_size {tp_size}"
    share = in_features // tp_size
    if share % group_size:
        split = f"in_features {in_features} / {tp_size} = {share}"
        return (
            f"{split} is not a multiple of group_size {group_size} (remainder {share % group_size})"
        )
    return ""


def _column_problem(linear: LinearShape, tp_size: int, group_size: int, heads: Heads) -> str:
    name, out_features, in_features = "out_features", linear.out_features, linear.in_features
    if group_size != -1 and in_features % group_size:
        remainder = in_features % group_size
        return (
            f"in_features {in_features} is not a multiple of group_size {group_size} "
            f"(remainder {remainder})"
        )
    if linear.role in KV_PROJECTIONS and heads.key_value < tp_size:
        # Each key-value head is copied to several ranks.
        out_features, tp_size = heads.size, 1
    if linear.role == "gate_up_proj":
        name, out_features = "half of out_features", out_features // 2
    if linear.role == "qkv_proj":
        name, out_features = "the query part of out_features", heads.query * heads.size
    if out_features % tp_size:
        return f"{name} {out_features} is not a multiple of tp_size {tp_size}"
    share = out_features // tp_size
    if share % OUTPUTS_IN_WORD:
        split = f"{name} {out_features} / {tp_size} = {share}"
        return f"{split} is not a multiple of {OUTPUTS_IN_WORD}, the codes in a packed word"
    return ""


def _heads(config: Mapping) -> Heads:
    query = config["num_attention_heads"]
    key_value = config.get("num_key_value_heads") or query
    return Heads(query, key_value, config.get("head_dim") or config["hidden_size"] // query)


def _from_config(config: Mapping, heads: Heads) -> list[LinearShape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "self_attn.q_proj": (heads.query * heads.size, hidden),
        "self_attn.k_proj": (heads.key_value * heads.size, hidden),
        "self_attn.v_proj": (heads.key_value * heads.size, hidden),
        "self_attn.o_proj": (hidden, heads.query * heads.size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return [LinearShape(f"model.layers.*.{name}", *shape) for name, shape in shapes.items()]


def _from_headers(ckpt: Checkpoint) -> list[LinearShape]:
    """Return the first linear of each role and shape, packed ones by their true size."""
    found: dict[tuple, LinearShape] = {}
    for tensor, info in ckpt.tensors.items():
        name, _, kind = tensor.rpartition(".")
        if kind == "weight" and len(info.shape) == 2:
            linear = LinearShape(name, *info.shape)
        elif kind == "qweight" and f"{name}.scales" in ckpt.tensors:
            linear = LinearShape(name, *_packed_shape(ckpt, name))
        else:
            continue
        if linear.role in ROW_PARALLEL + COLUMN_PARALLEL:
            key = (linear.role, linear.out_features, linear.in_features)
            found.setdefault(key, linear)
    return list(found.values())


def _packed_shape(ckpt: Checkpoint, name: str) -> tuple[int, int]:
    """Return N and K of a packed linear; AWQ packs codes along N, GPTQ along K."""
    rows, columns = ckpt.tensors[f"{name}.qweight"].shape
    out_features = ckpt.tensors[f"{name}.scales"].shape[-1]
    if columns != out_features:
        return out_features, rows
    return out_features, rows * 32 // ckpt.quantization.bits
