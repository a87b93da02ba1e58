"""What a run cost, from its clock and from records; and a result compared to another."""

import json

import numpy as np
import pandas as pd
import pytest

from awqbench.bench.run_results import RunStoppedError, result_digests, stop_after
from awqbench.bench.run_watch import watch_run
from awqbench.bench.scaling import best_rounds, describe_large, large_run, speedups, stage_table
from awqbench.errors import OutputError


def test_stages_add_up_to_the_total_and_stand_beside_the_prediction():
    times = {"read_s": 1.0, "search_s": 5.0, "spill_s": 0.5, "write_s": 0.5, "total_s": 10.0}
    table = stage_table(times, {"search": 4.0}).set_index("stage")
    assert table["seconds"].sum() == 10
    assert table["seconds"][["search", "writing", "other"]].tolist() == [5.0, 1.0, 3.0]
    assert table["share"]["search"] == 0.5
    assert table["predicted_s"]["search"] == 4 and np.isnan(table["predicted_s"]["other"])


def test_the_round_with_the_least_total_counts():
    rows = pd.DataFrame(
        {"model": "a", "workers": [0, 2, 0, 2], "total_s": [9.0, 5, 8, 6], "search_s": 4.0}
    )
    assert best_rounds(rows)["total_s"].tolist() == [8, 5]


def test_speedups_and_what_bounds_them():
    runs = pd.DataFrame({"model": "a", "workers": [0, 1, 2, 4], "total_s": [10.0, 8, 5, 4]})
    runs = runs.assign(search_s=4.0, forward_s=3.0, statistics_s=1.0, chunks=3)
    table = speedups(runs, cores=16)
    assert table["speedup"].tolist() == [1, 1.25, 2, 2.5]
    # One process has 2 s of its own beside the text's 4; one worker leaves it those 6. Two share
    # the text and the search, 4 s each; of four, three have a chunk: 2 s and a third of the text.
    assert table["ceiling"].tolist() == pytest.approx([1, 10 / 6, 10 / 4, 3])
    assert table["limit"].tolist() == pytest.approx([3] * 4)
    assert speedups(runs, cores=2)["ceiling"].tolist() == pytest.approx([1, 10 / 6, 2, 2])
    # A text of one chunk is not shared, however many there are.
    whole = speedups(runs.assign(chunks=1), cores=16)
    assert whole["ceiling"].tolist() == pytest.approx([1, 10 / 6, 10 / 6, 10 / 6])


def test_the_newest_run_of_the_largest_model_is_told():
    row = {"model": "m", "limit_bytes": 2**32, "peak_anonymous_bytes": 2**31}
    row |= {"total_s": 120.0, "predicted_s": 60.0}
    old, new, small = (
        row | {"model_bytes": 2**34, "model": "old"},
        row | {"model_bytes": 2**34, "model": "new"},
        row | {"model_bytes": 2**20},
    )
    found = large_run([{"rows": [old]}, {"rows": [new, small]}])
    assert found["model"] == "new"
    assert describe_large(found) == (
        "new (16.0 GiB) was quantized under a limit of 4 GiB with a peak of 2.00 GiB in "
        "2.0 minutes, 2.00 times the predicted 1.0"
    )
    assert large_run([]) is None


def test_digests_leave_out_what_tells_of_the_run_and_nothing_else(tmp_path):
    record = {"finished": "now", "times": {}, "memory": {}, "settings": {"bits": 4}}
    file = tmp_path / "awqbench_run.json"
    file.write_text(json.dumps(record))
    (tmp_path / "config.json").write_text("{}")
    first = result_digests(tmp_path)
    file.write_text(json.dumps(record | {"finished": "later", "times": {"total_s": 1}}))
    assert result_digests(tmp_path) == first
    file.write_text(json.dumps(record | {"settings": {"bits": 3}}))
    (tmp_path / "config.json").write_text("{ }")
    again = result_digests(tmp_path)
    assert all(again[name] != digest for name, digest in first.items())


def test_a_run_is_stopped_after_as_many_blocks():
    on_block = stop_after(2)
    on_block(0, 3, [])
    with pytest.raises(RunStoppedError, match="after 2 of 3"):
        on_block(1, 3, [])


def test_a_watched_run_that_fails_says_why(tmp_path):
    with pytest.raises(OutputError, match="status 2: FormatError: .* neither a folder"):
        watch_run(tmp_path / "nowhere", tmp_path / "out")
