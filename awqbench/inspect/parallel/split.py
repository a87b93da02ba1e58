"""Simulate tensor parallelism on quantized weights: each rank's slice, and their sum.

Row-parallel ranks hold slices of the inputs and add their results; column-parallel ranks
hold slices of the outputs and lay their results side by side. A slice that cuts a group or a
packed word is refused with vLLM's sentence, as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, ParameterError
from awqbench.gemm import gemm
from awqbench.inspect.parallel.split_checks import ALIGNED, OUTPUTS_IN_WORD
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    from collections.abc import Callable


def split_rows(packed: PackedWeight, tp_size: int) -> list[PackedWeight]:
    """Cut a row-parallel weight (o_proj, down_proj) by its inputs.

    Parameters
    ----------
    packed : PackedWeight
        (N, K).
    tp_size : int
        Ranks.

    Returns
    -------
    list of PackedWeight
        (N, K / tp_size) each. With act-order every rank keeps all scales, as its inputs may
        be of any group.

    Raises
    ------
    AlignmentError
        If a rank would hold a part of a group; with vLLM's sentence and the numbers.
    ParameterError
        If `tp_size` is not positive.
    """
    _require_ranks(tp_size)
    total, group_size = packed.in_features, packed.group_size
    whole = 1 if packed.g_idx is not None else group_size
    if total % (tp_size * whole):
        share = total / tp_size
        raise AlignmentError(
            f"{ALIGNED.format(side='input')} {packed.name or 'weight'}: in_features {total} / "
            f"{tp_size} ranks = {share:g}, which is {share / group_size:g} groups of {group_size}; "
            f"{_smaller_group(total, tp_size, group_size)}pad the model before it is quantized, "
            f"to in_features {-(-total // (tp_size * whole)) * tp_size * whole}."
        )
    return [_inputs_of(packed, rank, total // tp_size) for rank in range(tp_size)]


def _smaller_group(total: int, tp_size: int, group_size: int) -> str:
    sizes = [size for size in (64, 32, 16) if size < group_size and total % (tp_size * size) == 0]
    return f"quantize with group_size {sizes[0]}, or " if sizes else ""


def _inputs_of(packed: PackedWeight, rank: int, share: int) -> PackedWeight:
    inputs = slice(rank * share, (rank + 1) * share)
    groups = slice(None)
    if packed.g_idx is None:
        first = inputs.start // packed.group_size
        groups = slice(first, first + share // packed.group_size)
    return PackedWeight(
        codes=packed.codes[:, inputs],
        scales=packed.scales[:, groups],
        zeros=packed.zeros[:, groups],
        bits=packed.bits,
        group_size=packed.group_size,
        zero_point=packed.zero_point,
        scale_dtype=packed.scale_dtype,
        g_idx=None if packed.g_idx is None else packed.g_idx[inputs],
        name=_rank_name(packed, rank),
    )


def _rank_name(packed: PackedWeight, rank: int) -> str:
    return f"{packed.name or 'weight'} on rank {rank}"


def split_columns(packed: PackedWeight, tp_size: int) -> list[PackedWeight]:
    """Cut a column-parallel weight (q, k, v, gate, up) by its outputs.

    Parameters
    ----------
    packed : PackedWeight
        (N, K).
    tp_size : int
        Ranks.

    Returns
    -------
    list of PackedWeight
        (N / tp_size, K) each.

    Raises
    ------
    AlignmentError
        If a rank would hold a part of a packed word of 8 outputs.
    ParameterError
        If `tp_size` is not positive.
    """
    _require_ranks(tp_size)
    total = packed.out_features
    if total % (tp_size * OUTPUTS_IN_WORD):
        raise AlignmentError(
            f"{ALIGNED.format(side='output')} {packed.name or 'weight'}: out_features {total} / "
            f"{tp_size} ranks = {total / tp_size:g}, not a multiple of {OUTPUTS_IN_WORD}, the "
            "codes in a packed word; choose a smaller tp_size, or pad the model before it is "
            "quantized."
        )
    share = total // tp_size
    return [_outputs_of(packed, rank, share) for rank in range(tp_size)]


def _outputs_of(packed: PackedWeight, rank: int, share: int) -> PackedWeight:
    outputs = slice(rank * share, (rank + 1) * share)
    return PackedWeight(
        codes=packed.codes[outputs],
        scales=packed.scales[outputs],
        zeros=packed.zeros[outputs],
        bits=packed.bits,
        group_size=packed.group_size,
        zero_point=packed.zero_point,
        scale_dtype=packed.scale_dtype,
        g_idx=packed.g_idx,
        name=_rank_name(packed, rank),
    )


def row_parallel(x: np.ndarray, packed: PackedWeight, tp_size: int) -> np.ndarray:
    """Multiply over ranks that hold slices of the inputs, and add their results.

    Parameters
    ----------
    x : (M, K) ndarray of float32
    packed : PackedWeight
    tp_size : int

    Returns
    -------
    (M, N) ndarray
        Equal to `gemm(x, packed)` but for the order of the sums.

    Raises
    ------
    AlignmentError, ParameterError
        As `split_rows`.
    """
    shards = split_rows(packed, tp_size)
    inputs = np.split(x, tp_size, axis=-1)
    return sum(gemm(part, shard) for part, shard in zip(inputs, shards, strict=True))


def column_parallel(x: np.ndarray, packed: PackedWeight, tp_size: int) -> np.ndarray:
    """Multiply over ranks that hold slices of the outputs, and lay their results side by side.

    Parameters
    ----------
    x : (M, K) ndarray of float32
    packed : PackedWeight
    tp_size : int

    Returns
    -------
    (M, N) ndarray

    Raises
    ------
    AlignmentError, ParameterError
        As `split_columns`.
    """
    return np.concatenate([gemm(x, shard) for shard in split_columns(packed, tp_size)], axis=-1)


def parallel_mlp(
    x: np.ndarray,
    gate: PackedWeight,
    up: PackedWeight,
    down: PackedWeight,
    *,
    tp_size: int,
    activation: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Run a gated MLP as ranks do: nothing is exchanged before the last sum.

    Parameters
    ----------
    x : (M, K) ndarray of float32
    gate, up, down : PackedWeight
    tp_size : int
        1 for the whole MLP.
    activation : callable, optional
        SiLU by default.

    Returns
    -------
    (M, K) ndarray

    Raises
    ------
    AlignmentError, ParameterError
        As `split_rows` and `split_columns`.
    """
    activation = activation or _silu
    shards = zip(
        split_columns(gate, tp_size),
        split_columns(up, tp_size),
        split_rows(down, tp_size),
        strict=True,
    )
    return sum(gemm(activation(gemm(x, g)) * gemm(x, u), d) for g, u, d in shards)


def _silu(values: np.ndarray) -> np.ndarray:
    # exp of a large positive number overflows to inf, and x / inf is the 0 that is meant.
    with np.errstate(over="ignore"):
        return values / (1 + np.exp(-values))


def _require_ranks(tp_size: int) -> None:
    if tp_size < 1:
        raise ParameterError(f"tp_size is {tp_size}; need 1 rank or more.")
