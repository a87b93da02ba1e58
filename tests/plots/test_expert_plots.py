"""The heat map of a mixture of experts, by what is in its Axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from awqbench.plots.experts import coverage_finding, expert_heatmap


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def coverage(tokens):
    rows = [
        (f"model.layers.{block}", expert, n, n / sum(of_block), 1 / len(of_block), n < 4)
        for block, of_block in enumerate(tokens)
        for expert, n in enumerate(of_block)
    ]
    columns = ["block", "expert", "tokens", "share", "expected_share", "starved"]
    return pd.DataFrame(rows, columns=columns)


def test_heatmap_has_a_row_a_block_and_crosses_for_the_starved():
    ax = expert_heatmap(coverage([(100, 200, 100, 0), (25, 25, 25, 25)]), conditions="tiny")
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown, [[0, 1, 0, -2], [0, 0, 0, 0]], atol=1e-12)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[3, 0]])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1"]
    assert ax.get_title(loc="left").startswith("1 of 8 experts sees too few")


def test_findings():
    assert "0.5 of an even share" in coverage_finding(coverage([(50, 150)]))
    assert coverage_finding(coverage([])) == "The model has no experts"
    assert expert_heatmap(coverage([])).get_title(loc="left") == "The model has no experts"
