import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color

from awqbench.plots.style import BLUE, VERMILION
from awqbench.plots.xray import bytes_by_kind, levels_used, zero_point_histogram


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def sizes():
    """Two folders; only the second has g_idx, and kinds are not in the figure's order."""
    rows = [
        ("one", "norms", 1000),
        ("one", "codes", 60_000),
        ("one", "embeddings", 40_000),
        ("two", "codes", 60_000),
        ("two", "g_idx", 20_200),
        ("two", "biases", 500),
        ("two", "embeddings", 40_000),
        ("two", "other", 500),
    ]
    return pd.DataFrame(rows, columns=["folder", "kind", "weight_bytes"])


def parts_of(ax):
    """The left end and width of each folder's part, by kind."""
    return {
        bars.get_label(): [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in bars]
        for bars in ax.containers
    }


def test_bytes_are_stacked_in_one_order(sizes):
    ax = bytes_by_kind(sizes, conditions="4 bits")
    assert parts_of(ax) == {
        "codes": [(0, 60), (0, 60)],
        "g_idx": [(60, 0), (60, 20.2)],
        "embeddings": [(60, 40), (80.2, 40)],
        "norms, biases, other": [(100, 1), (120.2, 1)],
    }
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two"]
    assert ax.get_xlabel() == "kB on disk" and ax.get_xlim()[0] == 0
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first folder is above
    assert ax.get_title(loc="left") == "one takes 101 kB, two 20.0% more"
    assert "4 bits" in {text.get_text() for text in ax.texts}


def test_one_folder_says_what_is_largest(sizes):
    one = sizes[sizes["folder"] == "one"].drop(columns="folder")
    ax = bytes_by_kind(one)
    assert ax.get_title(loc="left") == "Codes take 59% of 101 kB"
    assert len(parts_of(ax)["codes"]) == 1
    same = pd.concat([one.assign(folder=name) for name in "ab"])
    assert bytes_by_kind(same).get_title(loc="left") == "All 2 folders take 101 kB"


def zero_points(counts, bits=4):
    return pd.DataFrame({"bits": bits, "value": range(1 << bits), "groups": counts})


def test_zero_points_are_shares_with_limits_in_colour():
    counts = [4, *[0] * 6, 30, 50, 10, 0, 0, 0, 0, 0, 6]
    ax = zero_point_histogram(zero_points(counts))
    bars = ax.patches
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == list(range(16))
    np.testing.assert_allclose([bar.get_height() for bar in bars], counts)
    colours = [bar.get_facecolor() for bar in bars]
    assert same_color(colours[0], VERMILION) and same_color(colours[15], VERMILION)
    assert all(same_color(colour, BLUE) for colour in colours[1:15])
    assert list(ax.lines[0].get_xdata()) == [8, 8]
    assert ax.get_title(loc="left") == "90% of the zero points are 6 to 10, 10.0% at a limit"


def test_the_width_of_most_groups_is_drawn():
    few, many = zero_points([1] * 16), zero_points([0] * 128 + [500] + [0] * 127, bits=8)
    ax = zero_point_histogram(pd.concat([few, many]))
    assert len(ax.patches) == 256
    assert ax.get_title(loc="left") == "Every group has zero point 128: symmetric weights"


def linears():
    """Two kinds of linears in two layers, and one apart; 16 levels."""
    rows = [
        ("layers.0.up", 16, 12.0),
        ("layers.1.up", 12, 10.0),
        ("layers.0.mlp.1.down", 16, 4.0),
        ("layers.1.mlp.1.down", 16, 8.0),
        ("head", 16, 16.0),
    ]
    table = pd.DataFrame(rows, columns=["name", "levels_used", "levels_per_group"])
    return table.assign(bits=4).astype({"bits": "Int64", "levels_used": "Int64"})


def test_levels_are_shares_of_the_grid_lowest_first():
    ax = levels_used(linears())
    group, whole = ax.lines
    assert (group.get_label(), whole.get_label()) == ("in a group, mean", "in a linear, least")
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["layers.*.mlp.*.down", "layers.*.up", "head"]
    np.testing.assert_allclose(group.get_xdata(), [37.5, 68.75, 100])
    np.testing.assert_allclose(whole.get_xdata(), [100, 75, 100])
    spans = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert spans == [[25, 50], [62.5, 75], [100, 100]]
    assert ax.get_title(loc="left") == "4 of 5 linears use every level, a group 62% of them"


def test_many_kinds_are_cut_to_the_lowest():
    one = linears().head(1)
    table = pd.concat([one.assign(name=f"kind{i:02d}") for i in range(40)])
    ax = levels_used(table, conditions="tiny")
    assert len(ax.lines[0].get_xdata()) == 28
    assert "tiny; the lowest 28 of 40 kinds" in {text.get_text() for text in ax.texts}
    assert ax.get_title(loc="left").startswith("All 40 linears use every level")


def test_linears_that_were_not_scanned_are_left_out():
    table = linears()
    table.loc[4, ["levels_used", "levels_per_group"]] = pd.NA
    assert len(levels_used(table).lines[0].get_xdata()) == 2
    nothing = table.tail(1)
    assert levels_used(nothing).get_title(loc="left") == "No linear was scanned"


def test_nothing_global_is_changed(sizes):
    before = dict(plt.rcParams)
    bytes_by_kind(sizes)
    assert dict(plt.rcParams) == before
