"""Chains of reads visit what they should; their times are nobody's claim."""

import numpy as np
import pytest

from awqbench.bench import memory_parallelism as parallelism
from awqbench.errors import BackendError, EmulatedTimingError


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr("awqbench.bench.emulation.why_emulated", lambda: "a made-up processor")


def library():
    try:
        return parallelism._library()
    except BackendError as error:
        pytest.skip(str(error))


def test_every_chain_follows_its_own_addresses():
    chase = library().chase
    lines = np.zeros((64, parallelism.LINE // 4), np.uint32)
    lines[:, 0] = np.roll(np.arange(64), -1)
    for chains in parallelism.CHAINS:
        at = np.arange(chains, dtype=np.uint32)
        chase(lines.ctypes.data, at.ctypes.data, chains, 5)
        assert at.tolist() == [(start + 5) % 64 for start in range(chains)]


def test_the_table_has_a_row_for_each_number_of_chains():
    library()
    table = parallelism.measure_parallelism(nbytes=1 << 20, rounds=1, reads=1 << 13)
    assert table["chains"].tolist() == list(parallelism.CHAINS)
    assert table["lines_in_flight"].iloc[0] == 1 and (table["ns_per_line"] > 0).all()
    assert table["gb_s"].tolist() == pytest.approx((64 / table["ns_per_line"]).tolist())


def test_an_emulated_processor_is_not_timed(emulated):
    with pytest.raises(EmulatedTimingError, match="a made-up processor"):
        parallelism.measure_parallelism()


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr("awqbench.gemm.native_build.find_compiler", lambda: None)
    parallelism._library.cache_clear()
    with pytest.raises(BackendError, match="takes a C.. compiler"):
        parallelism.measure_parallelism(nbytes=1 << 16, rounds=1)
    parallelism._library.cache_clear()
