import csv
import json
import os
import sys
from pathlib import Path

import pytest

from awqbench import cli
from awqbench.errors import ParameterError
from awqbench.report.sweep import run_sweep
from awqbench.report.sweep_grid import folder_name, plan_sweep, split_values

ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    "assert bits != 7, 'seven is refused'",
    "from awqbench.report.results import publish\n"
    "publish(out_dir, f'{bits} bits, seed {seed}.', values={'size': bits * 10, 'same': 1})",
)


@pytest.fixture(scope="module", autouse=True)
def importable_package():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, write_notebook):
    return write_notebook(tmp_path_factory.mktemp("books") / "book.ipynb", *CELLS)


@pytest.fixture(scope="module")
def swept(notebook, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweeps")
    seen = []
    page = run_sweep(
        notebook, {"bits": "3,7"}, out, on_done=lambda *done: seen.append(done), cell_timeout_s=60
    )
    return out, page, seen


@pytest.mark.parametrize("text", ["", "1,,2", "[1,2", "2,", "'a"])
def test_values_that_cannot_be_parted_are_refused(text):
    with pytest.raises(ParameterError):
        split_values(text)


def test_brackets_and_quotes_keep_their_commas():
    assert split_values("[1,2],[3]") == ["[1,2]", "[3]"]
    assert split_values("'a,b',c") == ["'a,b'", "c"]


def test_folder_names_differ_where_values_do():
    names = {folder_name({"model": value}) for value in ("a/b", "a_b", "a b", "x" * 300, "x" * 301)}
    assert len(names) == 5
    assert all("/" not in name and len(name) < 200 for name in names)


def test_the_grid_is_planned_before_anything_runs(notebook, tmp_path):
    points = plan_sweep(notebook, {"bits": "2,3", "seed": "0,1", "model": "tiny"}, tmp_path)
    assert [point.values for point in points] == [
        {"bits": b, "seed": s} for b in ("2", "3") for s in ("0", "1")
    ]
    assert [(p.job.parameters["bits"], p.job.parameters["seed"]) for p in points] == [
        (2, 0), (2, 1), (3, 0), (3, 1)
    ]  # fmt: skip
    assert len({point.job.folder for point in points}) == 4
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"bits": "3"}, "several values"),
        ({"bits": "3,3"}, "twice"),
        ({"bits": "3,x"}, "not an int"),
        ({"bitz": "3,4"}, "did you mean 'bits'"),
        ({"bits": ",".join(map(str, range(40))), "seed": ",".join(map(str, range(40)))}, "1,600"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_whole(notebook, tmp_path, settings, text):
    with pytest.raises(ParameterError, match=text):
        plan_sweep(notebook, settings, tmp_path)


def test_a_sweep_keeps_going_past_a_failure_and_shows_both(swept):
    out, page, seen = swept
    assert [(p.values["bits"], record.state) for p, record, _ in seen] == [
        ("3", "ok"), ("7", "failed")
    ]  # fmt: skip
    text = page.read_text()
    assert "seven is refused" in text and "3 bits, seed 0." in text
    assert 'href="bits%3D3/report.html"' in text
    rows = list(csv.DictReader((page.parent / "sweep.csv").open()))
    assert {"bits": "3", "state": "ok", "name": "size", "value": "30"} in rows
    assert [row["state"] for row in rows if row["bits"] == "7"] == ["failed"]


def test_workers_take_what_is_missing_and_the_page_names_what_differs(swept, notebook):
    pytest.importorskip("distributed", reason="Dask is not installed")
    out, *_ = swept
    seen = []
    page = run_sweep(
        notebook,
        {"bits": "3,4,5"},
        out,
        workers=2,
        on_done=lambda point, record, kept: seen.append((point.values["bits"], record.state, kept)),
        cell_timeout_s=60,
    )
    assert sorted(seen) == [("3", "ok", True), ("4", "ok", False), ("5", "ok", False)]
    text = page.read_text()
    assert ">size<" in text and ">same<" not in text
    assert "30 ▾" in text and "50 ▴" in text


def test_the_command_prints_its_runs_as_json(swept, notebook, monkeypatch, capsys):
    out, *_ = swept
    words = ["sweep", str(notebook), "-p", "bits=3,7", "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", ["awqbench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1  # one run fails
    facts = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in facts["runs"]] == ["ok", "failed"]
    assert Path(facts["page"]).is_file()
