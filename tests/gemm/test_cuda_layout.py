"""Tiles: the definition, word by word, and round trips."""

import numpy as np
import pytest
from gemm_cases import CASES, act_order, random_packed
from hypothesis import given, settings
from hypothesis import strategies as st

from awqbench.gemm.cuda_layout import (
    TileSpec,
    order_of,
    pack_codes,
    pack_meta,
    pack_weight,
    spec_of,
    store_scales,
    unpack_codes,
    unpack_meta,
    why_not,
)
from awqbench.numerics import narrowest_dtype

# Which weights have no tiles, and a word of why.
UNFIT = {
    "odd group": "33",
    "groups of one": "1,",
    "uneven groups": "50",
}


def fragment(spec, n_tile, k_tile, load, lane, at):
    """Return the (row, channel, bit) of each code in a word, from the manual's figure of A."""
    g, t = divmod(lane, 4)
    word = 4 * load + at
    places = []
    if spec.bits == 4:
        step, halves = word, (0, 1)
    else:
        step, half = divmod(word, 2)
        halves = (half,)
    for half in halves:
        for row in (0, 1):
            for odd in (0, 1):
                register = row + 2 * half
                bit = 4 * register + 16 * odd if spec.bits == 4 else 16 * row + 8 * odd
                channel = 128 * k_tile + 16 * step + 8 * half + 2 * t + odd
                places.append((16 * n_tile + g + 8 * row, channel, bit))
    return places


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_what_a_lane_multiplies(bits):
    rng = np.random.default_rng(bits)
    spec = TileSpec(40, 300, bits, 64, "float16")
    codes = rng.integers(0, 1 << bits, (40, 300), dtype=np.uint8)
    words = pack_codes(codes, spec)
    assert words.shape == (3, 3, bits // 2, 32, 4) and words.dtype == np.uint32
    padded = np.zeros((48, 384), np.uint32)
    padded[:40, :300] = codes
    for place in rng.integers(0, words.shape, (300, 5)):
        expected = sum(int(padded[n, k]) << bit for n, k, bit in fragment(spec, *map(int, place)))
        assert int(words[tuple(place)]) == expected, place


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_codes_and_meta_round_trip(data):
    bits = data.draw(st.sampled_from([4, 8]))
    n, k = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 400))
    group_size = data.draw(st.sampled_from([0, 32, 64, 96, 128, 256]))
    spec = TileSpec(n, k, bits, group_size, "float16")
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    words = pack_codes(codes, spec)
    assert words.shape == spec.codes_shape
    np.testing.assert_array_equal(unpack_codes(words, spec), codes)
    n_groups = -(-k // group_size) if group_size else 1
    zeros = rng.integers(0, 1 << bits, (n, n_groups), dtype=np.uint8)
    assert pack_meta(zeros, spec).shape == spec.meta_shape
    np.testing.assert_array_equal(unpack_meta(pack_meta(zeros, spec), spec, n_groups), zeros)


def test_meta_puts_rows_eight_apart_side_by_side():
    spec = TileSpec(32, 128, 4, 64, "float16")
    meta = pack_meta(np.arange(64).reshape(32, 2), spec)  # row n, group g: 2n + g
    assert meta[1, 0, 3].tolist() == [2 * 3 + 1, 2 * 11 + 1]
    assert meta[0, 1, 7].tolist() == [2 * 23, 2 * 31]


@pytest.mark.parametrize("name", CASES)
def test_every_weight_has_tiles_or_a_reason(name):
    packed = CASES[name]()
    reason = why_not(packed)
    assert bool(reason) == (name in UNFIT), reason
    if reason:
        assert UNFIT[name] in reason
        return
    tiles = pack_weight(packed)
    codes = unpack_codes(tiles.codes, tiles.spec)
    if tiles.order is not None:
        codes = codes[:, np.argsort(tiles.order)]
    np.testing.assert_array_equal(codes, packed.codes)
    scales = unpack_meta(tiles.scales, tiles.spec, packed.n_groups)
    if tiles.spec.scale_type == "bfloat16":
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(scales.astype(np.float32), packed.scales)
    assert tiles.codes.nbytes + tiles.scales.nbytes + tiles.zeros.nbytes == tiles.spec.nbytes


def test_act_order_gathers_groups():
    packed = random_packed(16, 256, 32, g_idx=act_order(256, 32))
    order = order_of(packed)
    assert (np.diff(packed.group_index()[order]) >= 0).all()
    assert order_of(random_packed(16, 256, 32)) is None


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(0.125, "float16"), (1e30, "float32"), (2.0**-100, "bfloat16"), (0.1, "float32")],
)
def test_scales_take_the_narrowest_exact_type(scale, expected):
    scales = np.full((2, 2), scale, np.float32)
    assert narrowest_dtype(scales) == expected
    stored = store_scales(scales, expected)
    if expected == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(stored.astype(np.float32), scales)


def test_whole_rows_are_group_zero():
    assert spec_of(random_packed(17, 300, 300)).group_size == 0
    assert spec_of(random_packed(17, 300, 100000)).group_size == 0
