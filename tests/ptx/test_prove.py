"""A part of all programs is exact on small products; what is not exact is told."""

import numpy as np

from awqbench.gemm import cuda_programs
from awqbench.gemm.cuda_build import Program
from ptx import prove
from ptx.build import needs_nvrtc
from ptx.faults import Race

pytestmark = needs_nvrtc
# Of the nearly 1,000 pairs; a prime, so that neighbours in the list are told apart.
EVERY = 71


def test_a_part_of_the_programs_is_exact():
    table = prove.proof_table(cuda_programs.matrix()[::EVERY])
    assert (table.outcome == "exact").all(), table[table.outcome != "exact"].to_string()


def test_every_program_has_a_problem_that_launches_it():
    for program, arch in cuda_programs.matrix():
        problem = prove.problem_for(program)
        if program.kernel in ("w4a16_skinny", "w4a16_mma", "w4a16_wgmma"):
            found = prove.kernels.launches(problem, arch, n_sm=1)
            assert [launch.program for launch in found].count(program) == 1
            assert problem.k % 128 and problem.n % 16  # tails


def test_wrong_results_and_faults_are_told(monkeypatch):
    def fails(*args, **how):
        raise Race("kernels/sum_splits.cu:1: two at once")

    pairs = [(Program.of("sum_splits", BF16=0), "80")]
    monkeypatch.setattr(prove.kernels, "run_sum", lambda *args: (np.zeros(300, np.uint16), None))
    assert prove.proof_table(pairs).outcome.tolist() == ["wrong"]
    monkeypatch.setattr(prove.kernels, "run_sum", fails)
    table = prove.proof_table(pairs)
    assert table.outcome.tolist() == ["Race: kernels/sum_splits.cu:1: two at once"]
    assert prove.summary(table).exact.tolist() == [0]
