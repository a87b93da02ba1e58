import hashlib
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from awqbench.errors import NotebookError
from awqbench.report.check import check_notebook
from awqbench.report.refresh import CHECKED, canonical_text, refresh_notebook

PARAMETERS = 'model: str = "tiny"\nseed: int = 0\nout_dir: str = ""'


def code(source, *names):
    return new_code_cell(source, metadata={"tags": list(names)} if names else {})


@pytest.fixture
def good(tmp_path):
    """A notebook that keeps every rule, once it is refreshed."""
    cells = [
        new_markdown_cell("# Title\n\nDoes it work?"),
        code(PARAMETERS, "parameters"),
        code("import sys\nprint('loud', file=sys.stderr)\nprint('a')\nprint('b')\n[1, 2]", CHECKED),
        code("print('time 3.2 s')"),
        code("publish = print\nassert seed == 0\npublish('Answer: 3 bits.')", CHECKED),
    ]
    path = tmp_path / "book.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def rewrite(path, change):
    """Change a canonical notebook and write it back in canonical form."""
    notebook = json.loads(path.read_text())
    change(notebook["cells"])
    path.write_text(canonical_text(notebook))


def rules(path):
    return {problem.rule for problem in check_notebook(path)}


@pytest.fixture
def refreshed(good):
    """The good notebook as if refreshed, without a kernel."""
    notebook = json.loads(good.read_text())
    for index, text in ((2, "a\nb\n"), (4, "Answer: 3 bits.\n")):
        output = {"output_type": "stream", "name": "stdout", "text": text}
        notebook["cells"][index]["outputs"] = [output]
    good.write_text(canonical_text(notebook))
    return good


def test_refresh_is_deterministic_and_keeps_checked_outputs_only(good):
    assert refresh_notebook(good)
    first = hashlib.sha256(good.read_bytes()).hexdigest()
    assert not refresh_notebook(good)
    assert hashlib.sha256(good.read_bytes()).hexdigest() == first
    cells = json.loads(good.read_text())["cells"]
    assert [len(cell.get("outputs", [])) for cell in cells] == [0, 0, 2, 0, 1]
    assert cells[2]["outputs"][0]["text"] == ["a\n", "b\n"]
    assert cells[2]["execution_count"] == 2
    assert cells[3]["execution_count"] is None
    assert "stderr" not in str(cells[2]["outputs"])
    assert check_notebook(good) == []
    nbformat.validate(nbformat.read(good, as_version=4))


def test_a_notebook_that_fails_is_left_as_it_was(good):
    notebook = json.loads(good.read_text())
    notebook["cells"][3]["source"] = "1 / 0"
    good.write_text(json.dumps(notebook))
    before = good.read_bytes()
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        refresh_notebook(good)
    assert good.read_bytes() == before


def test_canonical_form_does_not_depend_on_ids_order_or_pixels():
    def book(cell_id, parts):
        streams = [{"output_type": "stream", "name": "stdout", "text": part} for part in parts]
        image = {"data": {"image/png": cell_id, "text/plain": "alt"}, "metadata": {"x": cell_id}}
        outputs = [*streams, {"output_type": "display_data", **image}]
        cell = new_code_cell("x", metadata={"tags": [CHECKED], "time": cell_id}, outputs=outputs)
        cell["id"] = cell_id
        return {"cells": [cell]}

    assert canonical_text(book("one", ["ab"])) == canonical_text(book("two", ["a", "b"]))


def test_a_good_notebook_has_no_problems(refreshed):
    assert check_notebook(refreshed) == []


@pytest.mark.parametrize(
    ("index", "source", "rule"),
    [
        (3, "def f():\n    pass", "definition"),
        (3, "class A:\n    pass", "definition"),
        (3, "\n".join(["x = 1"] * 13), "length"),
        (3, "x = 1;", "semicolon"),
        (3, "x = = 1", "syntax"),
        (3, "open('/srv/data/file.txt')", "path"),
        (3, "open('C:\\\\data')", "path"),
        (0, "# Title\n\nNo question here.", "question"),
        (0, "# Title\n\nWhy?\n\n**Answer.** Much better.", "answer"),
        (1, 'seed: int = 0\nmodel: str = "tiny"\nout_dir: str = ""', "parameters"),
        (1, "import os", "parameters"),
        (2, "from ipywidgets import Output\nOutput()", "checked"),
        (4, "assert True", "answer"),
        (4, "publish('3')", "claims"),
    ],
)
def test_each_rule_can_fail(refreshed, index, source, rule):
    rewrite(refreshed, lambda cells: cells[index].update(source=source))
    assert rule in rules(refreshed)


@pytest.mark.parametrize(
    "source",
    ["x = 3 / 4 / 5", "# see https://x.org/a/b", "%matplotlib inline", "y = 'a/b/c', '</td></tr>'"],
)
def test_rules_leave_innocent_cells_alone(refreshed, source):
    rewrite(refreshed, lambda cells: cells[3].update(source=source))
    assert check_notebook(refreshed) == []


def test_a_checked_cell_without_output_would_compare_nothing(refreshed):
    rewrite(refreshed, lambda cells: cells[2].update(outputs=[]))
    assert "checked" in rules(refreshed)


def test_without_checked_cells_nbval_would_pass_on_nothing(refreshed):
    rewrite(refreshed, lambda cells: [cells[i]["metadata"].clear() for i in (2, 4)])
    assert "checked" in rules(refreshed)


def test_bytes_that_refresh_would_change_are_a_problem(refreshed):
    refreshed.write_text(refreshed.read_text().replace('"cell-03"', '"abc"'))
    assert rules(refreshed) == {"canonical"}


def test_size_is_limited(refreshed):
    output = {"output_type": "stream", "name": "stdout", "text": "x" * 200_000}
    rewrite(refreshed, lambda cells: cells[2].update(outputs=[output]))
    assert rules(refreshed) == {"size"}


def test_what_is_no_notebook_is_one_problem(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text("{}")
    assert rules(path) == {"format"}
