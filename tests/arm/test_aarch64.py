"""The package as aarch64 code under qemu: the same bits as here, or close to float64.

Skipped where the emulator was not fetched (python tests/arm/toolchain.py does); a comparison
that fails is a failure.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import run_emulated
from toolchain import Unavailable, find

LIMITS = {"int16": 1e-4, "float32": 1e-6, "int8": 2e-2}
EXACT = "golden,quantize,nonfinite"


@pytest.fixture(scope="module")
def tools():
    try:
        return find()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def levels_of_dotprod(tools):
    """Compiles the kernels once, before several processes want them."""
    return run_emulated.run_guest(tools, run_emulated.DOTPROD, "levels")["result"]["levels"]


@pytest.fixture(scope="module")
def runs(tools, levels_of_dotprod):
    """Results here, and of two processors under the emulator, side by side."""
    with ThreadPoolExecutor(2) as pool:
        jobs = (
            pool.submit(run_emulated.run_guest, tools, run_emulated.MAX_256, "native"),
            pool.submit(
                run_emulated.run_guest, tools, run_emulated.DOTPROD, f"{EXACT},gemm,semantics"
            ),
            pool.submit(run_emulated.run_here, f"{EXACT},gemm,native,semantics"),
        )
        wide, arm, here = (job.result()["result"] for job in jobs)
    return {"arm": arm, "wide": wide, "here": here}


@pytest.mark.parametrize("part", EXACT.split(","))
def test_same_bits(runs, part):
    """Golden linears of every layout, hard weights, and NaN, inf and zero scales in the input."""
    arm, here = runs["arm"][part], runs["here"][part]
    assert len(here) >= {"golden": 9, "quantize": 500, "nonfinite": 5}[part]
    assert arm == here


def test_refusals_are_the_same(runs):
    for name in ("NaN", "inf", "-inf"):
        assert runs["arm"]["nonfinite"][name].startswith("NonFiniteError: ")


def test_array_paths_agree_with_float64(runs):
    errors = runs["arm"]["gemm"]
    assert {name.split(",")[0] for name in errors} == {"numpy", "numexpr"}
    assert {name: error for name, error in errors.items() if not error <= 1e-6} == {}


def test_every_level_is_run(runs):
    native = runs["wide"]["native"]
    assert native["levels"] == ["sve-256", "neon-i8mm", "neon-dotprod", "neon", "portable"]
    assert native["disabled"] == {}


def test_every_level_agrees_with_float64(runs):
    errors = runs["wide"]["native"]["errors"]
    assert len(errors) == 5 * 3 * 11 * 8
    wrong = {
        name: error for name, error in errors.items() if not error <= LIMITS[name.split(", ")[1]]
    }
    assert wrong == {}


def test_levels_agree_bit_by_bit(runs):
    """Integers are exact and float32 is fused in one order, on every processor with both."""
    arm, here = runs["wide"]["native"]["digests"], runs["here"]["native"]["digests"]
    fused = [level for level in runs["here"]["native"]["levels"] if level != "portable"]
    compared = 0
    for name, digest in arm.items():
        level, case = name.split(", ", 1)
        others = ["portable"] if level == "portable" else fused
        for other in others:
            assert digest == here[f"{other}, {case}"], (name, other)
            compared += 1
    assert compared >= 33


def test_level_is_chosen_by_processor(tools, levels_of_dotprod):
    assert levels_of_dotprod == ["neon-dotprod", "neon", "portable"]
    for cpu, others in ((run_emulated.NEON, []), (run_emulated.MAX_128, ["i8mm", "dotprod"])):
        levels = run_emulated.run_guest(tools, cpu, "levels")["result"]["levels"]
        assert levels == [*(f"neon-{other}" for other in others), "neon", "portable"]


def test_conversions_differ_as_recorded(runs):
    """Why NaN and infinity never reach a conversion to integers: processors differ there."""
    arm, here = runs["arm"]["semantics"], runs["here"]["semantics"]
    assert arm["NaN to int32"] == 0 and arm["inf to int32"] == 2**31 - 1
    assert arm["codes by nan_to_num, clip, int32"] == here["codes by nan_to_num, clip, int32"]
    assert arm["float32 to float16 and back"] == here["float32 to float16 and back"]
