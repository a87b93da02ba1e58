import pandas as pd
import pytest

from awqbench.plots.search import plot_output_errors


def test_title_and_points_are_the_tables():
    table = pd.DataFrame(
        {
            "block": ["b.0", "b.0", "b.1", "b.1"],
            "linear": ["mlp.up_proj", "mlp.down_proj"] * 2,
            "output_error": [0.01, 0.02, 0.01, 0.01],
            "rounding_error": [0.02, 0.04, 0.02, 0.02],
            "alarm": [""] * 4,
        }
    )
    ax = plot_output_errors(table)
    assert ax.get_title(loc="left").endswith("takes away 50% of the output error of rounding")
    rounding, searched = ax.collections[1:3]
    assert rounding.get_offsets()[:, 1].tolist() == pytest.approx([2, 4, 2, 2])
    assert searched.get_offsets()[:, 1].tolist() == pytest.approx([1, 2, 1, 1])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["up_proj", "down_proj"]
