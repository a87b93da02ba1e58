"""How large is a model with its linears quantized? Counted exactly, nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from awqbench.formats.layouts.packing import words_for

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.formats.headers import TensorInfo
    from awqbench.quantize.statistics.stats import Stats


class WeightSize(NamedTuple):
    """Bytes of a quantized model on disk.

    `bits_per_weight` is of the quantized linears with their scales and zero points;
    `weight_bytes` is of the whole model.
    """

    weight_bytes: int
    linear_bytes: int
    bits_per_weight: float


def weight_size(ckpt: Checkpoint, stats: Stats, bits: int, group_size: int) -> WeightSize:
    """Count the bytes of a model with its searched linears quantized.

    Codes and zero points are packed in 32-bit words along N, as the AWQ layout has them (at
    other widths than 4 bits as dense bit streams), scales are float16, the rest is as stored.

    Parameters
    ----------
    ckpt : Checkpoint
    stats : Stats
        Tells which linears are quantized.
    bits : int
    group_size : int
        -1 means whole rows.

    Returns
    -------
    WeightSize
    """
    n_weights = linear_bytes = dense_bytes = 0
    for info in _linear_tensors(ckpt, stats):
        n_weights += info.size
        dense_bytes += info.nbytes
        linear_bytes += packed_bytes(*info.shape, bits=bits, group_size=group_size)
    total = ckpt.nbytes - dense_bytes + linear_bytes
    return WeightSize(total, linear_bytes, 8 * linear_bytes / n_weights)


def packed_bytes(out_features: int, in_features: int, *, bits: int, group_size: int) -> int:
    """Return the bytes of one packed linear: codes, zero points and float16 scales.

    Examples
    --------
    >>> packed_bytes(8, 128, bits=4, group_size=128)  # 512 of codes, 4 of zeros, 16 of scales
    532
    """
    n_groups = 1 if group_size == -1 else -(-in_features // group_size)
    return (in_features + n_groups) * 4 * words_for(
        out_features, bits
    ) + 2 * n_groups * out_features


def _linear_tensors(ckpt: Checkpoint, stats: Stats) -> Iterator[TensorInfo]:
    return (ckpt.tensors[f"{name}.weight"] for name in stats.manifest["in_features"])


def sizes(
    ckpt: Checkpoint, stats: Stats, bits: Iterable[int], group_sizes: Iterable[int]
) -> pd.DataFrame:
    """Return the exact size of every bits and group size; nothing is run.

    Parameters
    ----------
    ckpt : Checkpoint
    stats : Stats
    bits, group_sizes : iterable of int

    Returns
    -------
    DataFrame
        `bits`, `group_size`, `bits_per_weight`, `weight_bytes`, `linear_bytes`, and `share`
        of the bytes of the model as stored.
    """
    import pandas as pd

    rows = [
        {"bits": b, "group_size": g} | weight_size(ckpt, stats, b, g)._asdict()
        for b, g in product(bits, group_sizes)
    ]
    return pd.DataFrame(rows).assign(share=lambda table: table["weight_bytes"] / ckpt.nbytes)
