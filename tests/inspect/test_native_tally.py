"""The compiled scan counts what NumPy's does, on every pattern there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from awqbench.gemm import native
from awqbench.inspect.health.figures import Tally
from awqbench.inspect.health.native_tally import NativeTally, find_scan, make_tally
from awqbench.inspect.health.patterns import patterns_of

pytestmark = pytest.mark.skipif(
    not native.is_usable(), reason=f"native kernels: {native.why_absent()}"
)
CASTS = [
    ("bfloat16", "float16"),
    ("float16", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]


def assert_same(pieces, dtype, cast, group_size):
    patterns = patterns_of(dtype, cast)
    tallies = (
        Tally(patterns, group_size=group_size),
        NativeTally(patterns, find_scan(), group_size=group_size),
    )
    for tally in tallies:
        for piece in pieces:
            tally.add(np.ascontiguousarray(piece))
    expected, found = (tally.figures() for tally in tallies)
    assert found._replace(channels=None) == expected._replace(channels=None)
    assert (found.channels is None) == (expected.channels is None)
    if found.channels is not None:
        assert np.array_equal(found.channels, expected.channels)


@pytest.mark.parametrize(("dtype", "cast"), CASTS)
@pytest.mark.parametrize("group_size", [None, 1, 32, 100, 128, 5000])
def test_every_pattern(dtype, cast, group_size):
    every = np.arange(-(1 << 15), 1 << 15).astype(np.int16).reshape(16, 4096)
    shuffled = np.random.default_rng(0).permutation(every.ravel()).reshape(16, 4096)
    assert_same([every, shuffled], dtype, cast, group_size)


@pytest.mark.parametrize("group_size", [None, 32, 128])
def test_weights_as_they_are(group_size):
    import torch

    weight = torch.randn(64, 640, generator=torch.Generator().manual_seed(0)) * 0.02
    for scale in (1.0, 1e-6, 1e6):
        stored = (weight * scale).bfloat16().view(torch.int16).numpy()
        assert_same([stored, np.abs(stored), -np.abs(stored)], "bfloat16", "float16", group_size)


NUMBERS = st.sampled_from([0, -(1 << 15), 1, 0x7F7F, 0x7F80, 0x7F81, -1, 0x3880, 0x387F, 0x3300])


@settings(max_examples=150, deadline=None)
@given(
    arrays(np.int16, st.tuples(st.integers(1, 12), st.integers(1, 70)), elements=NUMBERS),
    st.sampled_from([None, 1, 3, 16, 64]),
    st.sampled_from(CASTS),
)
def test_any_piece(piece, group_size, case):
    assert_same([piece, piece[:1]], *case, group_size)


def test_no_numbers_and_wider_ones():
    assert_same([np.zeros((0, 8), np.int16)], "bfloat16", "float16", 4)
    patterns = patterns_of("float32", "float16")
    assert isinstance(make_tally(patterns, group_size=4), Tally)
    assert isinstance(make_tally(patterns_of("float16", "float16"), group_size=4), NativeTally)
