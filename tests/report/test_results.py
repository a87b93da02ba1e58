import json

import numpy as np
import pandas as pd
import pytest

from awqbench.errors import OutputError, ParameterError
from awqbench.report.results import publish, read_results, show


@pytest.fixture
def figure():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2])
    return drawn


def test_publish_writes_answer_values_tables_and_figures(tmp_path, figure, capsys):
    figure.set_label("A line.")
    values = {"rmse": np.float32(0.5), "all": np.arange(2), "bad": float("nan")}
    table = pd.DataFrame({"a": [1, 2]})
    publish(str(tmp_path / "run"), "It is 3.", figure=figure, tables={"t": table}, values=values)
    results = read_results(tmp_path / "run")
    assert results["values"] == {"rmse": 0.5, "all": [0, 1], "bad": "NaN"}
    assert results["figures"] == [{"name": "headline", "alt": "A line."}]
    assert results["tables"] == [{"name": "t", "rows": 2, "columns": ["a"]}]
    assert (tmp_path / "run" / "tables" / "t.csv").read_text() == "a\n1\n2\n"
    names = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert names == ["headline.png", "headline.svg"]
    assert "It is 3." in capsys.readouterr().out


def test_figures_are_the_same_bytes_each_time(tmp_path, figure):
    figure.set_label("A line.")
    for side in "ab":
        publish(str(tmp_path / side), "It is 3.", figure=figure)
    for kind in ("png", "svg"):
        first, second = (tmp_path / s / "figures" / f"headline.{kind}" for s in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_without_out_dir_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    publish("", "It is 3.", values={"a": 1})
    assert list(tmp_path.iterdir()) == []
    assert "It is 3." in capsys.readouterr().out


def test_results_of_others_are_not_read(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"answer": "x"}))
    assert read_results(tmp_path) == {}


def test_mistakes_are_named(tmp_path, figure):
    with pytest.raises(ParameterError, match="no number"):
        publish("", "It is better.")
    with pytest.raises(ParameterError, match="show"):
        publish("", "It is 3.", figure=figure)
    with pytest.raises(ParameterError, match="empty|alternative"):
        show(figure, " ")
    with pytest.raises(ParameterError, match="names a file"):
        publish("", "It is 3.", tables={"../x": pd.DataFrame()})
    with pytest.raises(ParameterError, match="object"):
        publish("", "It is 3.", values={"a": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="out_dir"):
        publish(str(tmp_path / "file" / "x"), "It is 3.")
