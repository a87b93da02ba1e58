"""Words of 3, 5, 6 and 7-bit values before compressed-tensors 0.18, and how to tell them.

Since then such values are a dense stream; before, each word held 32 // bits of them and
its high bits were unused. Widths that divide 32 are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.layouts.packing import unpack_stream, words_for


def padded_words_for(count: int, bits: int) -> int:
    """Return how many words hold `count` values where none straddles two words."""
    return -(-count // (32 // bits))


def unpack_padded(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack the last axis of words that hold 32 // bits values each.

    Parameters
    ----------
    words : (..., n_words) ndarray of int32
    bits : int
        1 to 8.
    count : int
        Values to return; at most ``n_words * (32 // bits)``.

    Returns
    -------
    (..., count) ndarray of uint8

    Examples
    --------
    >>> unpack_padded(np.array([0b111_110, 0b101], np.int32), bits=3, count=11)
    array([6, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5], dtype=uint8)
    """
    words = np.ascontiguousarray(words, dtype="<i4")
    shifts = (np.arange(32 // bits) * bits).astype(np.uint32)
    fields = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return fields.astype(np.uint8).reshape(*words.shape[:-1], -1)[..., :count]


def unpacker(
    streams: dict[str, tuple[np.ndarray, int]], bits: int, *, name: str
) -> Callable[[np.ndarray, int], np.ndarray]:
    """Choose dense or padded words, whichever all packed tensors of a linear fit.

    Below 32 values a row the widths can agree. A dense stream then ends before the last
    padded value does: bits set behind its end show padded words, and none set in any row
    shows a dense stream (of N padded rows of random codes that happens once in 2**N).

    Parameters
    ----------
    streams : dict
        By the tensor's name: words (rows, n_words) and how many values a row holds.
    bits : int
    name : str
        Module path, for error texts.

    Returns
    -------
    callable
        ``(words, count=count)`` to values, as `unpack_stream`.

    Raises
    ------
    FormatError
        If a width fits neither, or two tensors fit different ones.
    """
    fits = {"dense", "padded"}
    for part, (words, count) in streams.items():
        found, dense, padded = words.shape[1], words_for(count, bits), padded_words_for(count, bits)
        here = {how for how, n in (("dense", dense), ("padded", padded)) if n == found}
        fits &= here
        if not fits:
            other = f", or {padded} as before compressed-tensors 0.18" if padded != dense else ""
            reason = "; its other tensors are packed the other way" if here else ""
            raise FormatError(
                f"{name}.{part} has {found} words for {count} values of {bits} bits; "
                f"expected {dense}{other}{reason}."
            )
    is_open = len(fits) == 2
    behind = any(_behind(words, count * bits).any() for words, count in streams.values() if is_open)
    is_padded = behind if is_open else fits == {"padded"}
    return partial(unpack_padded if is_padded else unpack_stream, bits=bits)


def _behind(words: np.ndarray, used_bits: int) -> np.ndarray:
    """Return the bits of each row's last word behind the end of a dense stream."""
    last = words[:, -1].astype(np.int64) & 0xFFFFFFFF
    return last >> (used_bits - 32 * (words.shape[1] - 1))
