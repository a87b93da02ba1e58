"""The allocation of choices is the best there is, by comparison with every other."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from awqbench.errors import ParameterError
from awqbench.inspect.bits import allocate as module
from awqbench.inspect.bits.allocate import allocate

# Few distinct numbers, so that ties and dominated choices come up often.
units = st.lists(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def split(problem):
    return [[s for s, _ in unit] for unit in problem], [
        [e / 7 for _, e in unit] for unit in problem
    ]


def by_trying_all(sizes, losses, limit):
    every = itertools.product(*(range(len(unit)) for unit in sizes))
    return min(
        sum(losses[i][c] for i, c in enumerate(choices))
        for choices in every
        if sum(sizes[i][c] for i, c in enumerate(choices)) <= limit
    )


# The first guess is the best here, and states worse than it are left when the search ends.
STALE = [
    [(9, 16), (11, 27), (5, 23)],
    [(1, 14), (5, 3), (2, 6), (11, 38)],
    [(2, 32), (9, 32), (4, 32), (10, 10)],
]


@given(units, st.integers(0, 30))
@example(STALE, 4)
def test_nothing_beats_the_answer(problem, spare):
    sizes, losses = split(problem)
    limit = sum(map(min, sizes)) + spare
    found = allocate(sizes, losses, limit)
    assert found.size == sum(s[c] for s, c in zip(sizes, found.choices, strict=True)) <= limit
    assert found.loss == pytest.approx(
        sum(e[c] for e, c in zip(losses, found.choices, strict=True))
    )
    assert found.loss == pytest.approx(by_trying_all(sizes, losses, limit))
    assert found.bound == found.loss


@given(units, st.integers(0, 30))
def test_a_search_cut_short_says_how_far_off_it_may_be(problem, spare):
    sizes, losses = split(problem)
    limit = sum(map(min, sizes)) + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_STATES", 1)
        found = allocate(sizes, losses, limit)
    best = by_trying_all(sizes, losses, limit)
    assert found.size <= limit
    assert found.bound <= best + 1e-9 <= found.loss + 2e-9


def test_a_large_model_is_proven_optimal():
    """80 layers of 4 units and 9 choices, as of a 70 B model."""
    rng = np.random.default_rng(0)
    sizes, losses = [], []
    for n, k in 80 * [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)]:
        scale = np.exp(rng.normal(-4, 0.7))
        sizes.append([n * k * b // 8 + n * (k // 128) * 3 for b in (2, 3, 4, 5, 6, 8)])
        losses.append([scale * 4.0**-b * rng.uniform(0.9, 1.1) for b in (2, 3, 4, 5, 6, 8)])
    limit = int(1.1 * sum(size[1] for size in sizes))
    found = allocate(sizes, losses, limit)
    assert found.bound == found.loss
    assert 0.999 * limit < found.size <= limit


@pytest.mark.parametrize(
    ("sizes", "losses", "limit", "text"),
    [
        ([[5, 6], [7]], [[1, 0], [1]], 11, "take 12 bytes, 1 more than the limit of 11"),
        ([[5]], [[float("nan")]], 11, "NaN"),
        ([[]], [[]], 11, "no choice"),
        ([[5]], [[1, 2]], 11, "as many losses"),
    ],
)
def test_what_cannot_be_solved_is_refused(sizes, losses, limit, text):
    with pytest.raises(ParameterError, match=text):
        allocate(sizes, losses, limit)
