"""Loops cut out of assembly, bands, and models that are refused; llvm-mca is played by a script."""

import json
import sys

import pandas as pd
import pytest

from awqbench.bench import static_throughput as static
from awqbench.bench.static_throughput import StaticModelError

# A tile of one token: an address loop that multiplies nothing, then the loop that counts.
ARM = """
_ZN12_GLOBAL__N_19DotKernelILi2EE4tileINS_6SourceILi4ELb0EEELi1EEEvRKNS_4TileEi:
.LFB1:
\t.cfi_startproc
.L2:
\tadd\tx1, x1, 1
\tcmp\tx1, x2
\tblt\t.L2
.L3:
\tldr\tq0, [x0]
\tsdot\tv1.4s, v0.16b, v2.4b[0]
\tsdot\tv3.4s, v0.16b, v2.4b[2]
\tcmp\tx1, x2
\tblt\t.L3
\tret
\t.cfi_endproc
\t.size\tone, .-one
_ZN12_GLOBAL__N_111FloatKernel4tileINS_6SourceILi0ELb0EEELi2EEEvRKNS_4TileEi:
.L7:
\tfmla\tz1.s, p0/m, z2.s, z3.s
\tfmad\tz4.s, p0/m, z2.s, z3.s
\tb.lt\t.L7
\tret
_ZN12_GLOBAL__N_111FloatKernel4tileINS_6SourceILi4ELb1EEELi2EEEvRKNS_4TileEi:
.L8:
\tfmla\tv1.4s, v2.4s, v3.4s
\tblt\t.L8
"""
X86 = """
_ZN12_GLOBAL__N_110PairKernel4tileINS_6SourceILi4ELb0EEELi1EEEvRKNS_4TileEi:
.L3:
\tvpmaddwd\t%ymm1, %ymm2, %ymm3
#APP
\tvpdpwssd %zmm1, %zmm2, %zmm3
#NO_APP
\tvfmadd231ps\t(%rax){1to16}, %zmm1, %zmm2
\tjne\t.L3
"""


@pytest.fixture
def mca(tmp_path):
    """An llvm-mca that gives the units and numbers that the test writes."""
    answer = tmp_path / "answer.json"
    script = tmp_path / "llvm-mca"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdin.read()\nprint(open({str(answer)!r}).read())\n"
    )
    script.chmod(0o755)

    def play(units, cycles=400, bound=2.0):
        summary = {"TotalCycles": cycles, "Iterations": 100, "BlockRThroughput": bound}
        regions = [{"SummaryView": summary}]
        answer.write_text(json.dumps({"TargetInfo": {"Resources": units}, "CodeRegions": regions}))
        return script

    return play


def test_loops_are_found_and_weights_counted():
    one, kept = static.find_loops(ARM, sve_bits=256)
    # Two products of four bytes in four lanes, in two planes of one token.
    assert (one.kernel, one.bits, one.tokens, one.weights) == ("DotKernel<2>", 4, 1, 16)
    assert one.instructions_per_1024 == 5 * 1024 / 16
    # Two fused operations of eight lanes, shared by two tokens; what fills scratch is left out.
    assert (kept.kernel, kept.tokens, kept.weights) == ("FloatKernel", 2, 8)
    assert static.find_loops(ARM)[1].weights == 4


def test_x86_products_go_by_the_register():
    (loop,) = static.find_loops(X86)
    assert loop.weights == 2 * 8 + 2 * 16 + 16
    assert loop.instructions_per_1024 == 4 * 1024 / 64


def test_telling_loops():
    loops = [static.Loop("K", bits, tokens, 8, ()) for bits in (0, 4, 8) for tokens in (1, 2, 3)]
    assert [(loop.bits, loop.tokens) for loop in static.telling_loops(loops)] == [(4, 1), (0, 3)]


def test_band(mca):
    loop = static.find_loops(ARM)[0]
    band = static.analyse_loop(mca(["N2UnitB"]), "aarch64", "neoverse-n2", loop)
    assert band == (400 / 100 * 1024 / 16, 2 * 1024 / 16)


def test_borrowed_models_are_refused(mca):
    loop = static.find_loops(ARM)[0]
    with pytest.raises(StaticModelError, match="neoverse-n2 with units such as V2UnitB"):
        static.analyse_loop(mca(["V2UnitB.1", "V2UnitD"]), "aarch64", "neoverse-n2", loop)
    with pytest.raises(StaticModelError, match="apple-m4 with units such as CyUnitB.*neoverse-v2"):
        static.require_own_model(mca(["CyUnitB"]), "aarch64", "apple-m4")


def test_numbers_that_contradict_are_refused(mca):
    loop = static.find_loops(ARM)[0]
    static.analyse_loop(mca(["SPRPort0"], 600, 2.0), "x86_64", "sapphirerapids", loop)
    with pytest.raises(StaticModelError, match="simulates 385 cycles where its units need 128"):
        static.analyse_loop(mca(["SPRPort0"], 601, 2.0), "x86_64", "sapphirerapids", loop)


def test_llvm_mca_that_fails(tmp_path):
    with pytest.raises(StaticModelError, match="cannot be run"):
        static.mca_version(tmp_path / "nothing")
    script = tmp_path / "llvm-mca"
    script.write_text("#!/bin/sh\necho 'no such instruction' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(StaticModelError, match="llvm-mca refuses .*no such instruction"):
        static.require_own_model(script, "aarch64", "neoverse-n1")


def row(core, level, simulated, **changes):
    return {
        "provenance": "predicted", "core": core, "processor": "aarch64", "level": level,
        "activations": "int16", "tokens": 1, "simulated_cycles_per_1024": simulated,
        "bound_cycles_per_1024": simulated and simulated / 2, "measured_cycles_per_1024": None,
    } | changes  # fmt: skip


def test_figure_shows_the_level_that_is_chosen():
    import matplotlib.pyplot as plt

    from awqbench.plots.static_throughput import error_text, plot_static_cycles

    host = {"processor": "x86_64"}
    table = pd.DataFrame(
        [
            row("neoverse-n1", "neon", 40.0),
            row("neoverse-n1", "neon-dotprod", 50.0),
            row("neoverse-n1", "neon-dotprod", 9.0, tokens=3),
            row("neoverse-n2", "neon-i8mm", None),
            row("neoverse-n2", "neon", 30.0),
            row("znver4", "avx512-vnni", 80.0, **host),
            row(
                "znver4",
                "avx512-vnni",
                80.0,
                **host,
                provenance="measured_here",
                measured_cycles_per_1024=40.0,
            ),
        ]
    )
    ax = plot_static_cycles(table)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [
        "neoverse-n2  (neon)", "neoverse-n1  (neon-dotprod)", "znver4  (avx512-vnni)",
    ]  # fmt: skip
    assert [patch.get_x() for patch in ax.patches] == [15, 25, 40]
    assert ax.lines[0].get_xdata()[0] == 40
    assert "+100%" in error_text(table)
    assert error_text(table[table["provenance"] == "predicted"]).endswith("checked on no machine")
    plt.close("all")
