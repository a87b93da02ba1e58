import pandas as pd

from awqbench.plots.suggest import plot_suggestion

FRONTIER = pd.DataFrame({"bits_per_weight": [3.0, 4.0, 5.0, 16.0], "error": [0.4, 0.1, 0.01, 0.0]})
UNIFORM = pd.DataFrame(
    {"choice": ["3 bits, 64", "4 bits, 64"], "bits_per_weight": [3.0, 4.0], "error": [0.4, 0.2]}
)


def test_title_line_and_points_are_the_tables():
    ax = plot_suggestion(FRONTIER, UNIFORM, chosen=(3.5, 0.2), conditions="a model")
    assert ax.get_title(loc="left") == (
        "Mixed bits take 50% off the predicted error of 4 bits, 64 for all"
    )
    line, points, chosen = ax.lines
    assert line.get_xdata().tolist() == [3.0, 4.0, 5.0]  # no error, no place on the axis
    assert points.get_ydata().tolist() == [40.0, 20.0]
    assert chosen.get_xydata().tolist() == [[3.5, 20.0]]
    assert {"3 bits, 64", "4 bits, 64", "a model"} <= {text.get_text() for text in ax.texts}


def test_no_gain_and_nothing_to_compare_are_said():
    same = FRONTIER.iloc[:2].assign(error=[0.4, 0.2])
    ax = plot_suggestion(same, UNIFORM)
    assert ax.get_title(loc="left") == "No mix is predicted to beat one setting for all"
    ax = plot_suggestion(FRONTIER, UNIFORM.iloc[:0])
    assert ax.get_title(loc="left") == "Predicted error against size"
