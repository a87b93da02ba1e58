"""Small unsigned integers in 32-bit words: dense streams, and AWQ's order of columns.

Words are little-endian two's complement int32, as checkpoints store them; value i of a
dense stream occupies stream bits [bits * i, bits * (i + 1)), so that values of 3, 5, 6 or
7 bits may straddle two words.
"""

from __future__ import annotations

import numpy as np

# Nibble i of an AWQ word holds column AWQ_ORDER[i] of its eight columns.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Column j of the eight sits in nibble AWQ_INVERSE[j].
AWQ_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)


def words_for(count: int, bits: int) -> int:
    """Return how many 32-bit words hold `count` values of `bits` bits."""
    return -(-count * bits // 32)


def pack_stream(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack the last axis into 32-bit words as a dense little-endian bit stream.

    Parameters
    ----------
    values : (..., n) ndarray of uint8
        Each below 2**bits.
    bits : int
        1 to 8.

    Returns
    -------
    (..., ceil(n * bits / 32)) ndarray of int32
        Unused high bits of the last word are 0.

    Raises
    ------
    ValueError
        If a value does not fit; it would overwrite its neighbour.

    Examples
    --------
    >>> hex(pack_stream(np.arange(8, dtype=np.uint8), bits=4)[0])
    '0x76543210'
    """
    values = _as_fields(values, bits)
    *lead, count = values.shape
    n_words = words_for(count, bits)
    if 32 % bits == 0:
        per_word = 32 // bits
        padded = np.zeros((*lead, n_words * per_word), np.uint32)
        padded[..., :count] = values
        fields = padded.reshape(*lead, n_words, per_word)
        shifts = (np.arange(per_word) * bits).astype(np.uint32)
        return np.bitwise_or.reduce(fields << shifts, axis=-1).view(np.int32)
    spread = (values[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    stream = np.zeros((*lead, n_words * 32), np.uint8)
    stream[..., : count * bits] = spread.reshape(*lead, count * bits)
    packed = np.packbits(stream, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32, copy=False)


def _as_fields(values: np.ndarray, bits: int) -> np.ndarray:
    # Looked at before the cast, which would wrap 256 to 0.
    values = np.asarray(values)
    if values.size:
        for value in (int(values.min()), int(values.max())):
            if not 0 <= value < 1 << bits:
                raise ValueError(f"value {value} does not fit in {bits} bits.")
    return values.astype(np.uint8, copy=False)


def unpack_stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack the last axis of 32-bit words into `count` values of `bits` bits.

    Parameters
    ----------
    words : (..., n_words) ndarray of int32
    bits : int
        1 to 8.
    count : int
        Values to return; at most ``n_words * 32 // bits``.

    Returns
    -------
    (..., count) ndarray of uint8
    """
    words = np.ascontiguousarray(words, dtype="<i4")
    *lead, n_words = words.shape
    if 32 % bits == 0:
        shifts = (np.arange(32 // bits) * bits).astype(np.uint32)
        fields = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
        return fields.astype(np.uint8).reshape(*lead, n_words * (32 // bits))[..., :count]
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    fields = stream[..., : count * bits].reshape(*lead, count, bits)
    return (fields << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def pack_awq(values: np.ndarray) -> np.ndarray:
    """Pack 4-bit values along the last axis, eight columns a word in AWQ's order.

    Parameters
    ----------
    values : (..., n) ndarray of uint8
        n a multiple of 8.

    Returns
    -------
    (..., n / 8) ndarray of int32
    """
    values = _as_fields(values, 4)
    eights = values.reshape(*values.shape[:-1], values.shape[-1] // 8, 8)[..., AWQ_ORDER]
    return pack_stream(eights.reshape(values.shape), 4)


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """Undo `pack_awq`.

    Parameters
    ----------
    words : (..., n_words) ndarray of int32

    Returns
    -------
    (..., 8 * n_words) ndarray of uint8
    """
    values = unpack_stream(words, 4, 8 * words.shape[-1])
    eights = values.reshape(*words.shape, 8)[..., AWQ_INVERSE]
    return np.ascontiguousarray(eights).reshape(values.shape)


def unpack_awq_columns(words: np.ndarray) -> np.ndarray:
    """Unpack a matrix of AWQ words into rows of outputs, ``unpack_awq(words).T`` made contiguous.

    Words are turned round before they are unpacked, which moves half of the bytes: eight
    times as fast for a 4096 x 4096 linear (172 ms to 21).

    Parameters
    ----------
    words : (K, n_words) ndarray of int32

    Returns
    -------
    (8 * n_words, K) ndarray of uint8
    """
    turned = np.ascontiguousarray(words.T, dtype="<i4")
    n_words, n_rows = turned.shape
    fields = turned.view(np.uint8).reshape(n_words, n_rows, 4)
    values = np.empty((n_words, 8, n_rows), np.uint8)
    for byte in range(4):
        np.bitwise_and(fields[..., byte], 15, out=values[:, AWQ_ORDER[2 * byte]])
        np.right_shift(fields[..., byte], 4, out=values[:, AWQ_ORDER[2 * byte + 1]])
    return values.reshape(8 * n_words, n_rows)
