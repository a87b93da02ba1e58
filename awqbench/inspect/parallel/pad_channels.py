"""Where padded channels lie, and padding of single weights; all exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError

if TYPE_CHECKING:
    import torch

PLACEMENTS = ("interleaved", "interleaved zeros", "appended")
# Rows of a weight that are widened to float64 at a time: about 256 MB at 8192 inputs.
_CHUNK_ROWS = 4096


class Channels(NamedTuple):
    """The inner channels of a padded MLP.

    Parameters
    ----------
    source : (padded,) ndarray of int64
        Which channel of the original each one is taken from.
    is_real : (padded,) ndarray of bool
        False for padded ones.
    copies : bool
        Whether padded rows of gate and up are copies of `source`, or zero.
    """

    source: np.ndarray
    is_real: np.ndarray
    copies: bool


def place_channels(width: int, padded: int, *, placement: str = "interleaved") -> Channels:
    """Spread the channels of an MLP over a larger width.

    Parameters
    ----------
    width, padded : int
    placement : {"interleaved", "interleaved zeros", "appended"}
        Padded channels evenly between the others, their rows of gate and up copied from the
        channel before; the same with zero rows; or zero rows in one piece at the end.

    Returns
    -------
    Channels

    Raises
    ------
    ParameterError
        If `padded` is less than `width`.

    Examples
    --------
    >>> place_channels(4, 6).source.tolist()
    [0, 1, 1, 2, 3, 3]
    >>> place_channels(4, 6).is_real.astype(int).tolist()
    [1, 1, 0, 1, 1, 0]
    """
    if not 0 < width <= padded:
        raise ParameterError(f"cannot pad width {width} to {padded}: it must not shrink.")
    is_real = np.zeros(padded, dtype=bool)
    if placement == "appended":
        is_real[:width] = True
    else:
        # Integers i * padded / width rise by 1 or more, so no two coincide.
        is_real[np.arange(width, dtype=np.int64) * padded // width] = True
    source = np.cumsum(is_real) - 1
    return Channels(source, is_real, copies=placement == "interleaved")


def pad_rows(tensor: torch.Tensor, channels: Channels, *, n_parts: int = 1) -> torch.Tensor:
    """Pad the outputs of a weight, (N, K), or a bias, (N,).

    Parameters
    ----------
    tensor : torch.Tensor
    channels : Channels
    n_parts : int
        2 where gate and up lie one after the other in one weight.

    Returns
    -------
    torch.Tensor
        Of the same dtype; real rows bit for bit.
    """
    import torch

    source = torch.from_numpy(channels.source)
    parts = []
    for part in tensor.chunk(n_parts):
        padded = part.index_select(0, source)
        if not channels.copies:
            padded[torch.from_numpy(~channels.is_real)] = 0
        parts.append(padded)
    return torch.cat(parts)


def pad_columns(weight: torch.Tensor, channels: Channels) -> torch.Tensor:
    """Pad the inputs of a down projection, (N, K), with columns of zeros."""
    import torch

    padded = weight.index_select(1, torch.from_numpy(channels.source))
    padded[:, torch.from_numpy(~channels.is_real)] = 0
    return padded


def count_zero_groups(weight: torch.Tensor, group_size: int) -> int:
    """Count groups of inputs that hold nothing but zeros; the last one may be short.

    Parameters
    ----------
    weight : (N, K) torch.Tensor
    group_size : int
        -1 for whole rows.
    """
    import torch

    n, k = weight.shape
    size = k if group_size == -1 else group_size
    short = -k % size
    count = 0
    for rows in weight.split(_CHUNK_ROWS):
        used = torch.nn.functional.pad(rows != 0, (0, short))
        count += int((~used.reshape(len(rows), -1, size).any(dim=2)).sum())
    return count


def mlp_output(
    tensors: dict[str, torch.Tensor], columns: list[str], down: str, *, n_rows: int
) -> torch.Tensor:
    """Run an MLP on fixed random input in float64.

    SiLU stands for whatever activation the model has: a padded channel's column is zero, so
    equality does not depend on it.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        By name, ``.weight`` and ``.bias``.
    columns : list of str
        Gate and up, one weight that holds both, or the first of two linears.
    down : str
    n_rows : int
        Tokens.

    Returns
    -------
    (n_rows, N) torch.Tensor of float64
    """
    import torch

    n_in, n_out = tensors[f"{columns[0]}.weight"].shape[1], tensors[f"{down}.weight"].shape[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_rows, n_in, dtype=torch.float64, generator=generator)
    inner = torch.cat([_linear(x, tensors, name) for name in columns], dim=1)
    if inner.shape[1] == 2 * n_out:
        gate, up = inner.chunk(2, dim=1)
        inner = torch.nn.functional.silu(gate) * up
    else:
        inner = torch.nn.functional.silu(inner)
    return _linear(inner, tensors, down)


def _linear(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    import torch

    chunks = tensors[f"{name}.weight"].split(_CHUNK_ROWS)
    y = torch.cat([x @ rows.double().T for rows in chunks], dim=1)
    bias = tensors.get(f"{name}.bias")
    return y if bias is None else y + bias.double()
