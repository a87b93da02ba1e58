import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from awqbench import cli

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'model: str = "tiny"\nbits: int = 4  # bits per code\nseed: int = 0\nout_dir: str = ""'


@pytest.fixture
def notebook(tmp_path):
    """Fails when bits is 2."""
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell("assert bits != 2, 'two bits are too few'"),
    ]
    path = tmp_path / "book.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: status, stdout, stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["awqbench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_report_runs_skips_and_forces(run, notebook, tmp_path):
    out = tmp_path / "out"
    words = ("report", notebook, "--out", out, "-p", "bits=3")
    assert run(*words)[0] == 0
    status, text, _ = run(*words)
    assert (status, "up to date" in text) == (0, True)
    assert (out / "index.html").is_file()
    assert json.loads((out / "book" / "run.json").read_text())["parameters"]["bits"] == 3


def test_a_failed_notebook_is_status_1_and_says_why(run, notebook, tmp_path):
    status, text, _ = run("report", notebook, "--out", tmp_path / "out", "-p", "bits=2")
    assert status == 1
    assert "AssertionError: two bits are too few" in text
    assert (tmp_path / "out" / "book" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-p", "bitz=3"], "ParameterError: no parameter 'bitz' in book; did you mean 'bits'?"),
        (["-p", "bits=many"], "ParameterError: parameter 'bits' is 'many', not an int."),
        (["-p", "bits"], "ParameterError: 'bits' is not name=value"),
        (["--model", "a", "-p", "model=b"], "ParameterError: the model is given by both"),
        (["no_such"], "NotebookError: no notebook 'no_such'"),
        (["--out", "{file}/reports"], "OutputError: cannot write into"),
        (["--timeout", "soon"], "timeout"),
    ],
)
def test_mistakes_are_status_2_with_one_clear_line(run, notebook, tmp_path, words, part):
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file") for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    status, _, error = run("report", notebook, *out, *words)
    assert status == 2
    assert part in error
    assert "Traceback" not in error


def test_params_shows_type_default_and_help(run, notebook):
    status, text, _ = run("notebooks", "params", notebook)
    assert status == 0
    line = next(line for line in text.splitlines() if line.startswith("bits"))
    assert line.split() == ["bits:", "int", "=", "4", "bits", "per", "code"]


def test_check_prints_problems_and_fails(run, notebook):
    status, text, _ = run("notebooks", "check", notebook)
    assert status == 1
    assert "run `awqbench notebooks refresh` [canonical]" in text


def test_provenance_as_json(run):
    status, text, _ = run("provenance", "--json")
    assert (status, "cores_usable" in json.loads(text)) == (0, True)


def test_help_imports_nothing_heavy():
    heavy = ("torch", "papermill", "nbconvert", "nbformat", "pandas", "numpy", "matplotlib")
    code = (
        "import sys\nfrom awqbench import cli\nsys.argv = ['awqbench', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "LOADED []" in done.stdout
    assert "report" in done.stdout
