import pandas as pd

from awqbench.plots.scale import memory_over_time, speedup_lines, stage_bars

MIB = 2**20
SAMPLES = pd.DataFrame(
    {"seconds": [0.0, 1.0, 2.0], "rss_bytes": [10 * MIB, 40 * MIB, 30 * MIB], "finished": [0, 1, 2]}
)


def test_memory_has_its_plan_and_a_budget_that_is_near():
    ax = memory_over_time(SAMPLES, planned_bytes=35 * MIB, budget_bytes=50 * MIB)
    assert ax.get_title(loc="left") == "Peak 40 MiB of a budget of 50 MiB"
    assert ax.lines[0].get_ydata().tolist() == [10, 40, 30]
    assert len(ax.collections[0].get_segments()) == 2
    assert {text.get_text() for text in ax.texts} == {"planned peak", "budget"}
    assert ax.get_ylim()[1] > 50
    far = memory_over_time(SAMPLES, planned_bytes=35 * MIB, budget_bytes=5000 * MIB)
    assert far.get_ylim()[1] < 50 and {text.get_text() for text in far.texts} == {"planned peak"}


def test_stages_stand_beside_what_was_predicted():
    table = pd.DataFrame(
        {"stage": ["a", "b"], "seconds": [1.0, 3.0], "share": [0.25, 0.75], "predicted_s": [2, 2.0]}
    )
    ax = stage_bars(table)
    assert ax.get_title(loc="left") == "75% of the time is b"
    assert [bar.get_width() for bar in ax.patches] == [1, 3, 2, 2]
    assert len(stage_bars(table.assign(predicted_s=float("nan"))).patches) == 2


def test_speedups_are_drawn_with_their_ceilings():
    table = pd.DataFrame(
        {"model": "m", "workers": [0, 2], "speedup": [1.0, 1.5], "ceiling": [1.0, 2.0]}
    )
    ax = speedup_lines(table)
    assert ax.get_title(loc="left") == "At best 1.50 x, with 2 workers"
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[1, 1.5], [1, 2]]
    assert "gain nothing" in speedup_lines(table.assign(speedup=[1, 0.5])).get_title(loc="left")
