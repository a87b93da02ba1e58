import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from awqbench.inspect.sweep import percent_worse
from awqbench.plots.style import METHOD_COLOURS
from awqbench.plots.sweep import alpha_curves, by_group_size, pareto

METHODS = ("rounding", "AWQ + clip")


@pytest.fixture
def table():
    """Two methods at 4 and 2 bits, the second half as bad, with one loss below 0."""
    rows = [
        {
            "bits": bits,
            "group_size": group_size,
            "method": method,
            "bits_per_weight": bits + 20 / group_size,
            "delta_nll": loss * (1 + group_size / 128) / (1 + METHODS.index(method)),
            "delta_se": 0.002,
        }
        for bits, loss in ((4, -0.001), (2, 0.1))
        for group_size in (128, 32)
        for method in METHODS
    ]
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def lines_of(ax):
    """The data lines of each method, by label."""
    return {c.get_label(): c.lines[0] for c in ax.containers}


def test_pareto_shows_every_setting(table):
    ax = pareto(table)
    lines = lines_of(ax)
    assert set(lines) == set(METHODS)
    for method, line in lines.items():
        rows = table[table["method"] == method].sort_values("bits_per_weight", ascending=False)
        np.testing.assert_allclose(line.get_xdata(orig=False), rows["bits_per_weight"])
        np.testing.assert_allclose(line.get_ydata(orig=False), percent_worse(rows["delta_nll"]))
        assert line.get_color() == METHOD_COLOURS[method]


def test_pareto_names_the_finding_and_the_lines(table):
    ax = pareto(table, conditions="20 windows")
    assert ax.get_title(loc="left") == (
        "At 2 bits (group 128), AWQ + clip loses 11 %, rounding 22 %"
    )
    texts = {text.get_text() for text in ax.texts}
    assert {*METHODS, "20 windows", "2 bits", "4 bits"} <= texts


def test_pareto_holds_what_is_below_zero(table):
    ax = pareto(table)
    low, high = ax.get_ylim()
    assert low < percent_worse(-0.003) and high > percent_worse(0.2)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]


def test_one_setting_is_drawn(table):
    one = table.head(1).assign(delta_se=np.nan)
    assert len(lines_of(pareto(one))["rounding"].get_xdata()) == 1
    assert len(by_group_size(one)) == 1


def test_a_panel_for_each_bits(table):
    panels = by_group_size(table, conditions="20 windows")
    assert [ax.get_title(loc="left") for ax in panels] == ["4 bits", "2 bits"]
    for ax, bits in zip(panels, (4, 2), strict=True):
        for method, line in lines_of(ax).items():
            rows = table[(table["bits"] == bits) & (table["method"] == method)]
            rows = rows.sort_values("group_size")
            assert line.get_xdata().tolist() == [32, 128]
            np.testing.assert_allclose(line.get_ydata(orig=False), percent_worse(rows["delta_nll"]))
    assert panels[0].figure.get_suptitle() == (
        "Groups of 128 in place of 32 at 2 bits cost rounding 8.8 points, AWQ + clip 4.1 points"
    )


def test_alpha_curves_are_shares_of_no_scaling():
    curves = pd.DataFrame(
        {
            "case": ["as trained"] * 3 + ["planted"] * 3,
            "alpha": [np.nan, 0.0, 0.5] * 2,
            "loss": [2.0, 2.4, 1.8, 10.0, 11.0, 2.5],
        }
    )
    ax = alpha_curves(curves)
    shares = {
        line.get_label(): line.get_ydata().tolist()
        for line in ax.lines
        if not line.get_label().startswith("_")
    }
    assert shares == {"as trained": [1.2, 0.9], "planted": [1.1, 0.25]}
    assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines)
    assert ax.get_title(loc="left") == (
        "Scaling takes off 10% (as trained), 75% (planted) of the error"
    )
