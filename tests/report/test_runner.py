import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awqbench.errors import NotebookError, OutputError, ParameterError
from awqbench.report import record as record_module
from awqbench.report.keys import run_key
from awqbench.report.notebooks import find_notebooks, read_notebook
from awqbench.report.record import RunRecord, hide_home, read_record, write_record
from awqbench.report.runner import plan, run_report

OK = (
    "import os, sys\nprint(sys.executable == {executable!r}, os.path.basename(os.getcwd()))",
    "from awqbench.report.results import publish\n"
    "publish(out_dir, f'{{bits}} bits do it.', values={{'bits': bits, 'model': model}})",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def importable_package():
    """Let kernels import the package when it is not installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory, write_notebook):
    folder = tmp_path_factory.mktemp("books")
    write_notebook(folder / "ok.ipynb", *(s.format(executable=sys.executable) for s in OK))
    write_notebook(folder / "failing.ipynb", "print('before')", "1 / 0", "print('never')")
    write_notebook(folder / "killed.ipynb", "import os\nos._exit(9)", "print('never')")
    write_notebook(folder / "slow.ipynb", "import time\ntime.sleep(600)", "print('never')")
    return folder


@pytest.fixture(scope="module")
def runs(notebooks, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports")
    names = [notebooks / f"{name}.ipynb" for name in ("failing", "killed", "ok")]
    records = run_report(names, {"bits": "3"}, out)
    records += run_report([notebooks / "slow.ipynb"], {}, out, cell_timeout_s=2)
    return out, {record.notebook: record for record in records}


def executed_text(out, name):
    return (out / name / "report.ipynb").read_text()


def test_a_failing_notebook_does_not_stop_the_others(runs):
    _, records = runs
    states = {name: record.state for name, record in records.items()}
    assert states == {
        "failing": "failed",
        "killed": "kernel_died",
        "ok": "ok",
        "slow": "timeout",
    }


def test_the_kernel_is_this_interpreter_in_the_notebooks_folder(runs, notebooks):
    out, _ = runs
    assert f"True {notebooks.name}" in executed_text(out, "ok")


def test_the_setting_reaches_the_notebook_and_its_results(runs):
    out, records = runs
    assert records["ok"].parameters == {"model": "tiny", "bits": 3, "seed": 0}
    results = json.loads((out / "ok" / "results.json").read_text())
    assert results["answer"] == "3 bits do it."
    assert results["values"] == {"bits": 3, "model": "tiny"}


@pytest.mark.parametrize(("name", "cell"), [("failing", 3), ("killed", 2), ("slow", 2)])
def test_the_record_names_the_cell_of_the_source_notebook(runs, name, cell):
    out, records = runs
    assert records[name].cell == cell
    assert read_record(out / name) == records[name]


def test_the_record_holds_the_error(runs):
    _, records = runs
    assert (records["failing"].ename, records["failing"].evalue) == (
        "ZeroDivisionError",
        "division by zero",
    )
    assert records["failing"].traceback[-1] == "ZeroDivisionError: division by zero"
    assert "2 s" in records["slow"].evalue


@pytest.mark.parametrize("name", ["failing", "killed", "slow"])
def test_what_did_not_run_is_marked_so(runs, name):
    out, _ = runs
    cells = json.loads(executed_text(out, name))["cells"]
    status = [c["metadata"]["awqbench"]["status"] for c in cells if c["cell_type"] == "code"]
    assert status[-2:] == ["failed", "not run"]
    assert set(status[:-2]) == {"ok"}
    assert (out / name / "report.html").is_file()


def test_no_trace_of_papermills_own_claims_or_absolute_paths(runs, notebooks):
    out, _ = runs
    for name in ("ok", "killed"):
        text = executed_text(out, name)
        assert '"papermill"' not in text
        assert "completed" not in text
        assert str(out) not in text
    assert not list(out.rglob("*.part*"))


def test_only_what_changed_runs_again(notebooks, runs, tmp_path, write_notebook):
    book = write_notebook(tmp_path / "books" / "once.ipynb", "print(bits)")
    seen = []

    def go(settings, **kwargs):
        run_report(
            [book], settings, tmp_path / "out", on_done=lambda _, b: seen.append(b), **kwargs
        )

    go({})
    go({"bits": "4"})
    go({"bits": "5"})
    write_notebook(book, "print(bits + 1)")
    go({"bits": "5"})
    go({"bits": "5"}, force=True)
    assert seen == [False, True, False, False, False]


def test_key_follows_the_model_folder(notebooks, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    first, again = (plan([notebooks / "ok.ipynb"], {"model": str(model)}, tmp_path) for _ in "ab")
    (model / "config.json").write_text("{ }")
    changed = plan([notebooks / "ok.ipynb"], {"model": str(model)}, tmp_path)
    assert first[0].key == again[0].key != changed[0].key


def test_a_relative_model_folder_is_made_absolute(notebooks, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    models = [
        plan([notebooks / "ok.ipynb"], {"model": name}, tmp_path)[0].parameters["model"]
        for name in ("m", "tiny", "org/name")
    ]
    assert models == [str(tmp_path / "m"), "tiny", "org/name"]


def test_mistakes_are_found_before_anything_is_written(notebooks, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ParameterError, match="did you mean 'bits'"):
        run_report([notebooks / "ok.ipynb"], {"bitz": "3"}, out)
    with pytest.raises(NotebookError, match="no notebook"):
        run_report(["no_such_notebook"], {}, out)
    assert not out.exists()


def test_an_unwritable_folder_is_an_error_that_says_what_to_do(notebooks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        run_report([notebooks / "ok.ipynb"], {}, tmp_path / "file" / "reports")


def test_a_folder_of_somebody_else_is_left_alone(notebooks, tmp_path):
    (tmp_path / "ok" / "figures").mkdir(parents=True)
    with pytest.raises(OutputError, match="not a report of ours"):
        run_report([notebooks / "ok.ipynb"], {}, tmp_path)
    assert (tmp_path / "ok" / "figures").is_dir()


def test_a_folder_in_use_is_refused(notebooks, tmp_path):
    (tmp_path / "ok").mkdir()
    write_record(tmp_path / "ok", RunRecord("ok", "k", "running", pid=os.getppid()))
    with pytest.raises(OutputError, match=f"process {os.getppid()}"):
        run_report([notebooks / "ok.ipynb"], {}, tmp_path)


def test_key_can_be_computed_from_a_record(notebooks, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    job = plan([notebooks / "ok.ipynb"], {"model": str(tmp_path / "m")}, tmp_path)[0]
    recorded = hide_home(job.parameters)
    assert recorded["model"] == "~/m"
    assert run_key(read_notebook(job.path), recorded) == job.key


def test_interrupt_leaves_a_true_record_and_no_half_files(notebooks, tmp_path):
    out = tmp_path / "out"
    words = ["report", str(notebooks / "slow.ipynb"), "--out", str(out)]
    call = "from awqbench.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", call, *words], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    part = out / "slow" / ".report.part.ipynb"
    for _ in range(600):
        if part.is_file() and '"running"' in part.read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert read_record(out / "slow").state == "interrupted"
    assert [path.name for path in (out / "slow").iterdir()] == ["run.json"]
    assert "interrupted" in (out / "index.html").read_text()


def test_a_run_whose_process_is_gone_was_interrupted(tmp_path, monkeypatch):
    write_record(tmp_path, RunRecord("x", "k", "running", pid=1))
    assert read_record(tmp_path).state == "running"
    monkeypatch.setattr(record_module, "_is_alive", lambda pid: False)
    assert read_record(tmp_path).state == "interrupted"


def test_home_is_hidden_only_as_a_whole_path(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert hide_home({"a": ["/home/ann/x", "/home/anna/x", 3]}) == {"a": ["~/x", "/home/anna/x", 3]}


def test_two_notebooks_of_one_name_are_refused(tmp_path, write_notebook):
    paths = [write_notebook(tmp_path / side / "a.ipynb") for side in "xy"]
    with pytest.raises(NotebookError, match="'a'"):
        find_notebooks(paths)
