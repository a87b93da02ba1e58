"""The NumPy path on several threads: results, BLAS's own threads, errors, fork."""

import multiprocessing
import os
import sys
import threading
import warnings
from contextlib import ExitStack

import numpy as np
import pytest
from gemm_cases import random_packed, relative_error, tokens_for

from awqbench.errors import ParameterError
from awqbench.gemm import gemm, numpy_threads


@pytest.fixture
def two_threads():
    """Give BLAS two threads, whatever the environment says."""
    with numpy_threads._blas().limit(limits=2):
        if numpy_threads.blas_threads() != 2:
            pytest.skip("this BLAS takes one thread only")
        yield


@pytest.mark.parametrize("m", [1, 5, 64])
def test_blocks_are_worked_on_by_several_threads(two_threads, monkeypatch, m):
    packed = random_packed(1600, 512, 128)
    x = tokens_for(packed, m)
    seen = set()
    real = numpy_threads._pool

    def watched(pid, threads):
        seen.add(threads)
        return real(pid, threads)

    monkeypatch.setattr(numpy_threads, "_pool", watched)
    y = gemm(x, packed, "numpy")
    assert seen == {2} and numpy_threads.blas_threads() == 2
    exact = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    assert relative_error(y, exact) <= 1e-6
    # A small one stays where it is.
    seen.clear()
    small = random_packed(800, 128, 128)
    gemm(tokens_for(small, m), small, "numpy")
    assert not seen


def test_overflow_on_other_threads_does_not_warn(two_threads):
    packed = random_packed(1600, 512, 128)
    x = tokens_for(packed, 3) * np.float32(1e38)
    x[1, 4] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = gemm(x, packed, "numpy")
    assert not np.isfinite(y[1]).any()


def test_error_of_a_block_is_raised_and_blas_gets_its_threads_back(two_threads):
    def work(block):
        raise ParameterError(f"block {block}")

    with pytest.raises(ParameterError, match=r"block \(0, 1\)"):
        numpy_threads.run_blocks(work, [(0, 1), (1, 2)], n_weights=1 << 30)
    assert numpy_threads.blas_threads() == 2


def test_from_several_python_threads_blas_gets_its_threads_back(two_threads):
    packed = random_packed(1600, 512, 128)
    x = tokens_for(packed, 2)
    expected = gemm(x, packed, "numpy")
    results = []

    def work():
        results.extend(gemm(x, packed, "numpy") for _ in range(10))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 40 and numpy_threads.blas_threads() == 2
    for y in results:
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_the_last_call_gives_blas_its_threads_back(two_threads):
    first, second = ExitStack(), ExitStack()
    first.enter_context(numpy_threads._blas_on_one_thread())
    second.enter_context(numpy_threads._blas_on_one_thread())
    first.close()
    assert numpy_threads.blas_threads() == 1
    second.close()
    assert numpy_threads.blas_threads() == 2


def multiply_in_child(queue):
    packed = random_packed(1600, 512, 128)
    queue.put(float(gemm(tokens_for(packed, 2), packed, "numpy").sum()))


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_has_threads_of_its_own(two_threads):
    packed = random_packed(1600, 512, 128)
    expected = float(gemm(tokens_for(packed, 2), packed, "numpy").sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=multiply_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-3)
    child.join()
