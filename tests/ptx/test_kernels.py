"""Every kernel in every shape that is launched, against float64, with tails in M, N and K.

A kernel for few tokens must give the exact product rounded once; one for many tokens that of
weights rounded to the activations' type.
"""

import numpy as np
import pytest

from ptx.build import needs_nvrtc
from ptx.kernels import (
    launches,
    run_dequantize,
    run_direct,
    run_repack,
    run_sum,
    run_tile_dequantize,
    run_tiles,
)
from ptx.problems import Problem, is_close, to_bits

pytestmark = needs_nvrtc

# Width of codes, group, bf16 activations, macro SCALE, architecture: pairs of them all occur.
VARIANTS = [
    (4, 128, 0, 0, "80"),
    (8, 32, 1, 1, "89"),
    (4, 64, 1, 0, "90"),
    (8, 0, 0, 2, "120"),
    (4, 32, 0, 1, "86"),
    (8, 128, 1, 2, "100"),
    (4, 0, 1, 1, "80"),
    (8, 64, 0, 0, "75"),
]


def problem_of(variant, m, n, k):
    bits, group, bf16, scale, _ = variant
    return Problem(m, n, k, group, bits=bits, bf16=bf16, scale=scale)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("m", [1, 5, 13, 29])
def test_few_tokens_are_exact(m, variant):
    arch = variant[-1]
    n, k = {1: (24, 2184), 5: (40, 1160), 13: (72, 616), 29: (24, 296)}[m]
    problem = problem_of(variant, m, n, k)
    found = launches(problem, arch)
    # Three shapes of blocks: each meets every variant in one of the three numbers of tokens.
    chosen = found[(VARIANTS.index(variant) + m // 8) % len(found)]
    y, _ = run_tiles(problem, chosen, arch)
    assert is_close(y, problem.reference(), problem.kind), chosen


@pytest.mark.parametrize(
    ("variant", "shape"),
    [(VARIANTS[i], shape) for shape in range(3) for i in range(shape % 2, 7, 2)],
    ids=str,
)
def test_many_tokens_with_mma(variant, shape):
    arch = variant[-1]
    # K is split where there are multiprocessors to fill; rows of 37 are not whole 16 bytes.
    n, k, n_sm = {0: (72, 328, 1), 1: (37, 1096, 4), 2: (136, 200, 1)}[shape]
    problem = problem_of(variant, 33 + 20 * shape, n, k)
    chosen = launches(problem, arch, n_sm)[shape]
    y, _ = run_tiles(problem, chosen, arch)
    assert (chosen.splits > 1) == (n_sm > 1)
    assert is_close(y, problem.reference(rounded=True), problem.kind), chosen


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_many_tokens_with_wgmma(variant):
    number = VARIANTS.index(variant)
    n, k, n_sm = [(136, 328, 1), (37, 1096, 8), (200, 72, 1), (72, 584, 1)][number % 4]
    problem = problem_of(variant, 33 + 11 * number, n, k)
    found = launches(problem, "90a", n_sm)
    chosen = found[number // 4 % len(found)]
    y, _ = run_tiles(problem, chosen, "90a")
    assert (chosen.splits > 1) == (n_sm > 1)
    assert is_close(y, problem.reference(rounded=True), problem.kind), chosen


@pytest.mark.parametrize(
    ("m", "n", "k", "group", "bf16", "splits", "arch"),
    [
        (1, 128, 256, 128, 0, 1, "80"),
        (3, 200, 296, 64, 0, 1, "75"),
        (8, 264, 520, 32, 1, 2, "89"),
        (11, 144, 2056, 128, 0, 3, "90"),
        (2, 48, 1000, 0, 1, 1, "120"),
    ],
)
def test_straight_from_a_checkpoint(m, n, k, group, bf16, splits, arch):
    problem = Problem(m, n, k, group, bf16=bf16)
    y, _ = run_direct(problem, arch, splits=splits)
    assert is_close(y, problem.reference(), problem.kind)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_decoding_tiles_rounds_once(variant):
    problem = problem_of(variant, 1, 40, 200)
    out, _ = run_tile_dequantize(problem, variant[-1])
    assert np.array_equal(out, to_bits(problem.weight, problem.kind))


@pytest.mark.parametrize(
    ("n", "k", "group", "bf16", "arch"),
    [(264, 136, 64, 0, "75"), (40, 72, 0, 1, "100"), (256, 256, 32, 0, "90")],
)
def test_decoding_a_checkpoint_is_what_autoawq_decodes(n, k, group, bf16, arch):
    problem = Problem(1, n, k, group, bf16=bf16)
    out, _ = run_dequantize(problem, arch)
    assert np.array_equal(out, to_bits(problem.weight, problem.kind).T)


@pytest.mark.parametrize(("bits", "awq", "arch"), [(4, 1, "75"), (4, 0, "90"), (8, 0, "120")])
def test_repacking(bits, awq, arch):
    problem = Problem(1, 40, 200, bits=bits)
    out, _ = run_repack(problem, arch, awq=awq)
    assert np.array_equal(out, problem.tiles()[0])


@pytest.mark.parametrize("bf16", [0, 1])
def test_splits_are_added_in_order(bf16):
    partial = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    total = np.zeros(300, np.float32)
    for part in partial:
        total += part
    y, _ = run_sum(partial, bf16)
    assert np.array_equal(y, to_bits(total, "bf16" if bf16 else "f16"))


@pytest.mark.parametrize("schedule", ["warps", "shuffled"])
@pytest.mark.parametrize("m", [3, 40])
def test_the_order_of_warps_changes_nothing(m, schedule):
    problem = Problem(m, 40, 264, 64)
    for arch in ("80", "90a"):
        chosen = launches(problem, arch)[0]
        together, _ = run_tiles(problem, chosen, arch)
        apart, _ = run_tiles(problem, chosen, arch, schedule=schedule)
        assert np.array_equal(together, apart)
