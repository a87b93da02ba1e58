"""What the GPTQ layouts hold for each group: zero points, scales, and its input channels.

Version 2 stores a zero point z as it is, version 1 stores z - 1, which no field can hold
for z = 0. GPTQModel subtracts 1 from all fields of a word at once, so that a 0 borrows from
its neighbour, and adds it back in the same way; vLLM and the ExLlama kernels take each
field by itself and read the neighbour one too low. At 3 bits, where fields straddle words,
GPTQModel too takes each by itself.
"""

from __future__ import annotations

import numpy as np

from awqbench.errors import FormatError, ParameterError
from awqbench.formats.layouts.packing import pack_stream, unpack_stream
from awqbench.numerics import round_to


def check_version(version: int) -> None:
    """Raise unless the layout's version is 1 or 2.

    Raises
    ------
    ParameterError
    """
    if version not in (1, 2):
        raise ParameterError(
            f"version is {version!r}; choose 1 (checkpoint_format gptq) or 2 (gptq_v2)."
        )


def unpack_zeros(words: np.ndarray, bits: int, out_features: int, *, version: int) -> np.ndarray:
    """Read zero points as GPTQModel does.

    Version 1 is read as its main writer wrote it: 1 is added to all fields of a word at
    once, carries included. Files without a zero point of 0 read alike either way.

    Parameters
    ----------
    words : (G, ceil(N * bits / 32)) ndarray of int32
    bits : {2, 3, 4, 8}
    out_features : int
        N.
    version : {1, 2}

    Returns
    -------
    (G, N) ndarray of uint8

    Examples
    --------
    The 0 in column 1 was stored as 15, and column 2 lent it 1: its 7 became 5, not 6.

    >>> words = np.array([[0x777775F7]], dtype=np.int32)
    >>> unpack_zeros(words, 4, 8, version=1).tolist()
    [[8, 0, 7, 8, 8, 8, 8, 8]]
    """
    if version == 2:
        return unpack_stream(words, bits, out_features)
    if 32 % bits:
        fields = unpack_stream(words, bits, out_features)
        return (fields + np.uint8(1)) & np.uint8((1 << bits) - 1)
    # A 1 in every field: 0x11111111 at 4 bits. Unsigned sums wrap modulo 2**32.
    ones = np.uint32(0xFFFFFFFF // ((1 << bits) - 1))
    words = np.ascontiguousarray(words).view(np.uint32) + ones
    return unpack_stream(words.view(np.int32), bits, out_features)


def pack_zeros(zeros: np.ndarray, bits: int, *, version: int, name: str) -> np.ndarray:
    """Pack zero points so that every reader reads the same.

    Parameters
    ----------
    zeros : (N, G) ndarray of uint8
    bits : {2, 3, 4, 8}
    version : {1, 2}
    name : str
        Module path, for error texts.

    Returns
    -------
    (G, ceil(N * bits / 32)) ndarray of int32

    Raises
    ------
    FormatError
        If a zero point does not fit in `bits` bits, or is 0 in version 1.
    """
    too_large = zeros >= 1 << bits
    if too_large.any():
        row, group = (int(i) for i in np.argwhere(too_large)[0])
        raise FormatError(
            f"{name} row {row}, group {group} has zero point {zeros[row, group]}, which "
            f"{bits} bits cannot hold ({int(too_large.sum())} of {zeros.size})."
        )
    if version == 1:
        if not zeros.all():
            row, group = (int(i) for i in np.argwhere(zeros == 0)[0])
            raise FormatError(
                f"{name} row {row}, group {group} has zero point 0 ({int((zeros == 0).sum())} of "
                f"{zeros.size}); the gptq layout stores it less one, and readers disagree on what "
                "0 becomes. Use the gptq-v2 layout, or quantize with zero_point=False."
            )
        zeros = zeros - np.uint8(1)
    return pack_stream(np.ascontiguousarray(zeros.T), bits)


def check_scales(scales: np.ndarray, *, name: str) -> None:
    """Raise if a scale is not a finite float16 number.

    Parameters
    ----------
    scales : (N, G) ndarray of float32
    name : str
        Module path, for error texts.

    Raises
    ------
    FormatError
        With the first such scale and their number.
    """
    bad = (round_to(scales, "float16") != scales) | ~np.isfinite(scales)
    if bad.any():
        row, group = (int(i) for i in np.argwhere(bad)[0])
        raise FormatError(
            f"{name} row {row}, group {group} has scale {scales[row, group]:.9g}, which float16, "
            f"the dtype of GPTQ's scales, cannot hold ({int(bad.sum())} of {bad.size}); quantize "
            "with scale_dtype='float16'."
        )


def group_size_from(
    group_size: int | None,
    in_features: int,
    n_groups: int,
    *,
    g_idx: np.ndarray | None,
    name: str,
) -> int:
    """Return the group size as a positive int that cuts K into G groups.

    Parameters
    ----------
    group_size : int or None
        As the configuration says; -1 means whole rows, None to find it.
    in_features, n_groups : int
        K and G, from the tensors.
    g_idx : (K,) ndarray of int32 or None
    name : str
        Module path, for error texts.

    Raises
    ------
    FormatError
        If `group_size` does not cut K into G groups, or is None and the shapes leave a
        choice.
    """
    if group_size is None:
        return _group_size_of(in_features, n_groups, g_idx=g_idx, name=name)
    if not isinstance(group_size, (int, np.integer)) or (group_size < 1 and group_size != -1):
        raise FormatError(
            f"{name}: group_size is {group_size!r}; expected a positive int, or -1 for whole rows."
        )
    size = in_features if group_size == -1 else min(group_size, in_features)
    expected = -(-in_features // size)
    if expected != n_groups:
        raise FormatError(
            f"{name}.scales has {n_groups} groups; {in_features} input channels in groups of "
            f"{size} (group_size is {group_size}) need {expected}."
        )
    return int(size)


def _group_size_of(in_features: int, n_groups: int, *, g_idx: np.ndarray | None, name: str) -> int:
    if n_groups == 1:
        return in_features
    low, high = -(-in_features // n_groups), (in_features - 1) // (n_groups - 1)
    if g_idx is not None and low <= high:
        check_g_idx(g_idx, n_groups, name=name)
        fullest = int(np.bincount(g_idx).max())  # all groups are full but one
        return fullest if low <= fullest <= high else low
    # An even cut, or a power of two and a short last group: 224 channels in 4 groups are 56
    # each, or 64 and a last group of 32.
    choices = {1 << p for p in range(31) if low <= 1 << p <= high}
    if in_features % n_groups == 0:
        choices.add(low)
    if len(choices) != 1:
        raise FormatError(
            f"{name}: no one group size follows from {in_features} input channels in {n_groups} "
            f"groups of {name}.scales; give the config's group_size."
        )
    return choices.pop()


def check_g_idx(g_idx: np.ndarray, n_groups: int, *, name: str) -> None:
    """Raise if an input channel's group is not one of G.

    Raises
    ------
    FormatError
        With the first such channel and its group.
    """
    bad = np.flatnonzero((g_idx < 0) | (g_idx >= n_groups))
    if len(bad):
        raise FormatError(
            f"{name}.g_idx[{bad[0]}] is {g_idx[bad[0]]}; expected 0 to {n_groups - 1}, the groups "
            f"of {name}.scales ({len(bad)} entries of {len(g_idx)})."
        )
