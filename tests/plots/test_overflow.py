"""Figures of overflow: limits, bars and findings are in the Axes."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from awqbench.plots.overflow import (
    activation_headroom,
    finding_of,
    normaliser_losses,
    weight_ranges,
)

LINEARS = ("self_attn.q_proj", "mlp.up_proj")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def weights(n_layers=4, *, vanished=0, overflow=0):
    """A table as the health scan gives it; layer 1's second linear is the one in trouble."""
    rows = [
        {
            "name": f"model.layers.{layer}.{linear}.weight",
            "dtype": "bfloat16",
            "absmax": 0.5,
            "smallest_nonzero": 2.0**-22,
            "smallest_group": 0.03,
            "groups": 100,
            "zero_groups_created": 0,
            "overflow_f16": 0,
        }
        for layer in range(n_layers)
        for linear in LINEARS
    ]
    norm = dict.fromkeys(("smallest_group", "groups", "zero_groups_created"), None)
    rows.append(rows[0] | {"name": "model.norm.weight"} | norm)
    rows[3] |= {"zero_groups_created": vanished, "overflow_f16": overflow}
    rows[3] |= {"smallest_group": 2.0**-33} if vanished else {}
    return pd.DataFrame(rows)


def horizontal_lines(ax):
    return {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}


@pytest.mark.parametrize(
    ("dtype", "limits"),
    [("float16", {65504.0, 2.0**-14, 2.0**-24}), ("bfloat16", {2.0**-126, 2.0**-133})],
)
def test_limits_are_drawn(dtype, limits):
    ax = weight_ranges(weights(), cast_dtype=dtype)
    assert limits <= horizontal_lines(ax)
    assert ax.get_yscale() == "log"


def test_a_bar_for_each_linear_and_a_red_one_below_the_limit():
    ax = weight_ranges(weights(vanished=32))
    thin, thick, red = ax.collections
    assert len(thin.get_segments()) == len(thick.get_segments()) == 8
    assert len(red.get_segments()) == 1
    (segment,) = red.get_segments()
    np.testing.assert_allclose(segment[:, 1], [2.0**-33, 2.0**-24])
    texts = [text.get_text() for text in ax.texts]
    assert "layer 1 up_proj\n32 of 100 groups become 0" in texts


@pytest.mark.parametrize(
    ("troubles", "expected"),
    [
        ({}, "No group of weights becomes 0 in float16; none overflows"),
        ({"vanished": 1}, "A whole group becomes 0 in float16; none overflows"),
        (
            {"vanished": 32, "overflow": 5},
            "32 whole groups of weights become 0 in float16; one tensor overflows",
        ),
    ],
)
def test_the_title_is_the_finding(troubles, expected):
    assert finding_of(weight_ranges(weights(**troubles))) == expected


def test_very_many_linears_become_one_bar_a_layer():
    ax = weight_ranges(weights(n_layers=120, vanished=7))
    assert len(ax.collections[0].get_segments()) == 120
    assert any("layer 1\n7 of 200 groups" in text.get_text() for text in ax.texts)


def activations(factor=1.0):
    return pd.DataFrame(
        {
            "block": [0, 0, 1, 1],
            "site": ["self_attn.q_proj", "mlp.down_proj"] * 2,
            "absmax": [2.0 * factor, 60.0, 4.0 * factor, 80.0],
        }
    )


def test_activations_are_drawn_against_65504():
    tables = {"natural": activations(), "× 30": activations(30), "× 30,000": activations(3e4)}
    ax = activation_headroom(tables)
    assert 65504.0 in horizontal_lines(ax)
    lines = [tuple(line.get_ydata()) for line in ax.lines]
    assert lines[:2] == [(2.0, 4.0), (60.0, 80.0)]
    assert (60.0, 120.0) in lines and (6e4, 1.2e5) in lines
    # down_proj is not planted, so it is drawn once; two sites, two planted lines, the limit.
    assert len(lines) == 2 + 2 + 1
    assert finding_of(ax) == "Activations peak 819 times below float16's limit"
    assert ax.get_ylim()[1] > 1.2e5


def scales(lost_from=300.0):
    levels = [10.0, 300.0, 1e4]
    lost = {("AutoAWQ", "float16"): [64 * (level >= lost_from) for level in levels]}
    lost |= {("AutoAWQ", "float32"): [0, 0, 0], ("awqbench", "float32"): [0, 0, 0]}
    return pd.DataFrame(
        [
            {
                "level": level,
                "formula": formula,
                "dtype": dtype,
                "alpha": alpha,
                "channels": 64,
                "usable": 64 - (count if alpha else 0),
            }
            for (formula, dtype), counts in lost.items()
            for level, count in zip(levels, counts, strict=True)
            for alpha in (0.0, 0.5)
        ]
    )


def test_normaliser_shows_the_share_of_lost_scales():
    ax = normaliser_losses(scales())
    peers, peers_wide, ours, limit = ax.lines
    assert list(peers.get_ydata()) == [0.0, 50.0, 50.0]
    assert set(ours.get_ydata()) == set(peers_wide.get_ydata()) == {0.0}
    assert limit.get_xdata()[0] == 65504.0
    assert finding_of(ax).endswith("loses scales from level 300 on")


def test_normaliser_without_losses_says_so():
    assert finding_of(normaliser_losses(scales(np.inf))).startswith("No formula loses")
