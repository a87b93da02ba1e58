import matplotlib.pyplot as plt
import pandas as pd
import pytest

from awqbench.inspect.placement import plan_placement
from awqbench.plots.placement import PARTS, finding, occupancy, plot_placement

BUDGETS = {"cuda:0": "8MiB", "cuda:1": "10MiB"}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def devices(*contexts):
    tables = {
        f"{n} tokens": plan_placement("tiny", BUDGETS, context=n, reserve="1KiB").table
        for n in contexts
    }
    return occupancy(tables)


def test_bars_stack_to_what_a_device_holds_and_a_line_is_its_budget():
    rows = devices(64, 1024)
    ax = plot_placement(rows, conditions="tiny")
    assert len(ax.patches) == len(PARTS) * len(rows)
    tops = sorted({round(p.get_y() + p.get_height(), 6) for p in ax.patches})
    held = rows[["weight_bytes", "kv_bytes", "reserve_bytes"]].sum(axis=1) / 2**20
    assert set(held.round(6)) <= set(tops)
    lines = [path.vertices[0, 1] for c in ax.collections for path in c.get_paths()]
    assert lines == [8, 10, 8, 10]
    assert ax.get_ylabel() == "memory of a device (MiB)"
    names = [text.get_text() for text in ax.texts]
    assert {"weights", "KV cache", "reserve", "budget", "64 tokens"} <= set(names)
    assert sum(name.endswith(" free") for name in names) == 2
    assert sum(name.endswith(" over") for name in names) == 2


def test_one_case_and_empty_devices_are_drawn():
    budgets = {"cuda:0": "1GiB", "cuda:1": "1GiB"}
    table = plan_placement("tiny", budgets, strategy="in_order", reserve=0).table
    ax = plot_placement(occupancy({"in order": table}))
    assert table["n_blocks"].tolist() == [8, 0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ((64,), "Fits: 64 tokens"),
        ((64, 1024), "Fits: 64 tokens; does not: 1024 tokens"),
        ((1024, 2048), "Does not fit: 1024 tokens, 2048 tokens"),
    ],
)
def test_the_title_is_the_finding(contexts, expected):
    rows = devices(*contexts)
    assert isinstance(rows, pd.DataFrame) and finding(rows) == expected
    assert plot_placement(rows).get_title(loc="left") == expected
