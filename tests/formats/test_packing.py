"""Bit streams and AWQ's order against a slow reference, bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awqbench.formats.layouts.packing import (
    AWQ_INVERSE,
    AWQ_ORDER,
    pack_awq,
    pack_stream,
    unpack_awq,
    unpack_awq_columns,
    unpack_stream,
    words_for,
)


def slow_stream(values, bits):
    """Pack one row: value i takes stream bits [bits * i, bits * (i + 1)), words of 32 bits."""
    stream = sum(int(value) << (bits * i) for i, value in enumerate(values))
    n_words = -(-len(values) * bits // 32)
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(n_words)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@st.composite
def rows_of_fields(draw):
    bits = draw(st.integers(1, 8))
    count = draw(st.integers(0, 70))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return bits, np.array(rows, np.uint8).reshape(len(rows), count)


@given(rows_of_fields())
def test_stream_is_the_slow_one_and_comes_back(case):
    bits, values = case
    words = pack_stream(values, bits)
    assert words.dtype == np.int32 and words.shape == (
        len(values),
        words_for(values.shape[1], bits),
    )
    for row, packed in zip(values, words, strict=True):
        assert packed.tolist() == slow_stream(row, bits)
    back = unpack_stream(words, bits, values.shape[1])
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_all_ones_fill_whole_words(bits):
    ones = np.full(32, 2**bits - 1, np.uint8)
    assert pack_stream(ones, bits).tolist() == [-1] * bits
    np.testing.assert_array_equal(unpack_stream(np.full(bits, -1, np.int32), bits, 32), ones)


def test_values_of_three_bits_straddle_words():
    values = np.zeros(32, np.uint8)
    values[10] = values[21] = 7  # stream bits 30..32 and 63..65
    assert pack_stream(values, 3).tolist() == [-(2**30), 1 - 2**31, 3]


@pytest.mark.parametrize(
    ("count", "bits", "words"),
    [(0, 4, 0), (1, 1, 1), (8, 4, 1), (9, 4, 2), (32, 3, 3), (40, 3, 4), (11, 3, 2)],
)
def test_words_for(count, bits, words):
    assert words_for(count, bits) == words


def test_leading_axes_are_kept_and_strides_do_not_matter():
    values = np.random.default_rng(0).integers(0, 8, (3, 50, 4), dtype=np.uint8)
    words = pack_stream(values.transpose(0, 2, 1), 3)
    assert words.shape == (3, 4, 5)
    np.testing.assert_array_equal(unpack_stream(words, 3, 50), values.transpose(0, 2, 1))
    np.testing.assert_array_equal(
        unpack_stream(words[:, ::2], 3, 50), values[..., ::2].swapaxes(1, 2)
    )


@pytest.mark.parametrize("shape", [(0, 9), (9, 0), (2, 0, 8), (0, 8)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_nothing_packs_to_nothing(shape, bits):
    words = pack_stream(np.zeros(shape, np.uint8), bits)
    assert words.shape == (*shape[:-1], words_for(shape[-1], bits))
    assert unpack_stream(words, bits, shape[-1]).shape == shape
    if shape[-1] % 8 == 0:
        assert unpack_awq(pack_awq(np.zeros(shape, np.uint8))).shape == shape


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("excess", [0, 300, -1 - 2**8])
def test_a_value_that_does_not_fit_is_refused(bits, excess):
    values = np.zeros(8, np.int64)
    values[3] = 2**bits + excess
    with pytest.raises(ValueError, match=f"value {2**bits + excess} does not fit in {bits} bits"):
        pack_stream(values, bits)


@pytest.mark.parametrize("value", [16, 255, 256, -1])
def test_awq_refuses_what_four_bits_cannot_hold(value):
    with pytest.raises(ValueError, match=f"value {value} does not fit in 4 bits"):
        pack_awq(np.full((2, 8), value))


def test_awq_order_is_the_written_map():
    assert AWQ_ORDER == (0, 2, 4, 6, 1, 3, 5, 7)
    assert AWQ_INVERSE == (0, 4, 1, 5, 2, 6, 3, 7)
    # Columns 0 to 7 hold 0 to 7: nibble i, from the low end, is AWQ_ORDER[i].
    assert pack_awq(np.arange(8, dtype=np.uint8)).tolist() == [0x75316420]


@given(st.lists(st.integers(0, 15), min_size=8, max_size=64))
def test_awq_word_by_word(values):
    values = np.array(values[: len(values) // 8 * 8], np.uint8)
    words = pack_awq(values)
    for c, word in enumerate(words.tolist()):
        for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            assert (word & 0xFFFFFFFF) >> (4 * i) & 15 == values[8 * c + column]
    np.testing.assert_array_equal(unpack_awq(words), values)


def test_awq_needs_whole_words():
    with pytest.raises(ValueError):
        pack_awq(np.zeros((2, 12), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 8), (0, 2), (3, 0)])
def test_columns_are_the_transpose(shape):
    words = np.random.default_rng(0).integers(-(2**31), 2**31, shape).astype(np.int32)
    found = unpack_awq_columns(words)
    assert found.flags.c_contiguous and np.array_equal(found, unpack_awq(words).T)
