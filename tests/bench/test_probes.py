import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from awqbench.bench.probes import (
    Probe,
    compute_probes,
    last_level_cache_bytes,
    limited_threads,
    measure_ceilings,
    read_probe,
)
from awqbench.bench.timing import Timing
from awqbench.errors import ParameterError


def test_a_rate_is_the_amount_over_the_median_and_the_best_over_the_shortest():
    probe = Probe("read", 4e9, lambda: None)
    timing = Timing((2.0, 1.0, 4.0))
    assert probe.rate(timing) == 2 and probe.best_rate(timing) == 4


def test_the_read_probe_reads_what_it_says():
    probe = read_probe(4_000_000)
    assert probe.amount == 4_000_000
    assert float(probe.call()) == 1_000_000  # a sum of ones, four bytes each


def test_compute_probes_multiply_and_count_two_operations_a_product():
    probes = compute_probes(64)
    assert {"float32", "bfloat16"} <= set(probes)
    for name, probe in probes.items():
        assert probe.amount == 2 * 64**3
        result = probe.call()
        assert result.shape == (64, 64)
        assert result.dtype == (torch.int32 if name == "int8" else getattr(torch, name))


def test_ceilings_have_units_in_their_names():
    ceilings = measure_ceilings(nbytes=1_000_000, rounds=1)
    assert ceilings.threads == torch.get_num_threads()
    for name, value in ceilings._asdict().items():
        assert name == "threads" or name.endswith("_per_s") or name.endswith("gb_s")
        assert value is None or (np.isfinite(value) and value > 0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({"0": "32K", "3": "480M"}, 480 * 2**20), ({"0": "1024K"}, 2**20), ({"0": "?"}, 2**25)],
)
def test_the_last_level_cache_is_the_largest(tmp_path, sizes, expected):
    for index, text in sizes.items():
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text + "\n")
    assert last_level_cache_bytes(tmp_path) == expected


def test_threads_are_given_to_every_library_and_given_back():
    import numexpr

    before = torch.get_num_threads(), numexpr.get_num_threads()
    blas = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    with limited_threads(1):
        assert torch.get_num_threads() == numexpr.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert (torch.get_num_threads(), numexpr.get_num_threads()) == before
    after = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    assert {path: after[path] for path in blas} == blas


def test_no_threads_are_refused():
    with pytest.raises(ParameterError, match="threads is 0"), limited_threads(0):
        pass
