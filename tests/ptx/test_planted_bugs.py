"""Bugs planted in the kernels' sources, one at a time: each must be found, and as what.

A bug that has no place in the source any more is a failure: the list follows the kernels.
"""

import re

import pytest

from ptx.build import NotPlanted, needs_nvrtc
from ptx.faults import PtxFault
from ptx.planted import BUGS, sum_splits

pytestmark = needs_nvrtc


@pytest.mark.parametrize("name", BUGS)
def test_is_killed(name):
    run, pattern, replacement, kinds = BUGS[name]
    try:
        seen = run((pattern, replacement))
    except PtxFault as fault:
        seen = type(fault).__name__
    assert re.fullmatch(kinds, seen), seen


@pytest.mark.parametrize(
    "run",
    sorted({run for run, *_ in BUGS.values()}, key=lambda run: run.__name__),
    ids=lambda run: run.__name__,
)
def test_nothing_is_found_where_nothing_was_planted(run):
    assert run(("#define DEVICE static", "#define DEVICE static")) == "right result"


def test_a_bug_without_a_place_is_a_failure():
    with pytest.raises(NotPlanted, match="occurs 0 times in sum_splits.cu"):
        sum_splits(("no such text", ""))
