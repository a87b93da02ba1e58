"""House rules of committed notebooks, checked without running them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from awqbench.errors import NotebookError
from awqbench.report.notebooks import read_notebook, tags, title_and_question
from awqbench.report.parameters import read_parameters
from awqbench.report.refresh import CHECKED, is_canonical

MAX_LINES = 12
MAX_BYTES = 200_000
# Two names at least: a lone slash is division, and </td> or https:// are no paths.
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:~<*-])/(?:[A-Za-z][\w.-]*/)+[\w.-]+|\b[A-Z]:\\\\?\w+")
# nbval does not implement what these send to the page.
_NOT_CHECKABLE = ("Output(", "clear_output(", "interact(", "interactive_output(", "display_id")


class Problem(NamedTuple):
    """A rule that a notebook breaks.

    Attributes
    ----------
    notebook : str
        File name.
    cell : int or None
        Index; None for the file as a whole.
    rule : str
        Short name.
    message : str
        What is wrong, and what to do.
    """

    notebook: str
    cell: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        """Write the problem on one line."""
        where = self.notebook if self.cell is None else f"{self.notebook} cell {self.cell}"
        return f"{where}: {self.message} [{self.rule}]"


def check_notebook(path: Path) -> list[Problem]:
    """List the house rules that a notebook breaks, without running it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of Problem
        Empty for a notebook that may be committed.
    """
    try:
        notebook = read_notebook(path)
    except NotebookError as error:
        return [Problem(path.name, None, "format", str(error))]
    found = [(None, *problem) for problem in _check_file(path, notebook)]
    for index, cell in enumerate(notebook["cells"]):
        checks = _check_text(cell)
        if cell["cell_type"] == "code":
            checks += list(_check_code(cell)) + list(_check_outputs(cell))
        found += [(index, *problem) for problem in checks]
    return [Problem(path.name, *problem) for problem in found]


def _check_file(path: Path, notebook: dict[str, Any]) -> Iterator[tuple[str, str]]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield "size", f"is {size:,} bytes, above {MAX_BYTES:,}; keep figures out of checked cells"
    if not is_canonical(path):
        yield "canonical", "is not as refreshed; run `awqbench notebooks refresh`"
    title, question = title_and_question(notebook)
    if not title or not question.endswith("?"):
        yield "question", "must open with '# Title' and, below, its question in one sentence"
    yield from _check_parameters(path, notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not any(CHECKED in tags(cell) for cell in code):
        yield "checked", f"has no cell tagged {CHECKED}; nbval would compare nothing"
    if not any("publish(" in cell["source"] for cell in code):
        yield "answer", "does not call publish(out_dir, answer, ...) at its end"
    if not any(re.search(r"^\s*assert", cell["source"], re.MULTILINE) for cell in code):
        yield "claims", "asserts none of its claims"


def _check_parameters(path: Path, notebook: dict[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        names = list(read_parameters(notebook, path.name))
    except NotebookError as error:
        yield "parameters", str(error)
        return
    if names[:1] != ["model"] or names[-2:] != ["seed", "out_dir"]:
        yield (
            "parameters",
            "needs one cell tagged 'parameters' with model first, seed and out_dir last; "
            f"has {', '.join(names) or 'none'}",
        )


def _check_text(cell: dict[str, Any]) -> list[tuple[str, str]]:
    texts = [cell["source"]]
    for output in cell.get("outputs", []):
        parts = [output.get("text", ""), *output.get("data", {}).values()]
        texts += ["".join(part) for part in parts if not isinstance(part, dict)]
    found = next(filter(None, map(_ABSOLUTE_PATH.search, texts)), None)
    problems = [("path", f"holds the absolute path {found[0]!r}")] if found else []
    for text in texts:
        answer = re.search(r"^\W*Answer\b(.*(?:\n.+)*)", text, re.MULTILINE)
        if answer and not re.search(r"\d", answer[1]):
            problems.append(("answer", "gives an answer without a number"))
    return problems


def _check_code(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Magics are not Python; a line of them is kept as a statement that does nothing.
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell["source"], flags=re.MULTILINE)
    lines = sum(1 for line in source.splitlines() if line.strip())
    if lines > MAX_LINES:
        yield "length", f"has {lines} lines, above {MAX_LINES}; move logic into the package"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield "syntax", f"is not Python: {error.msg}, line {error.lineno}"
        return
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [node.name for node in ast.walk(tree) if isinstance(node, kinds)]
    if named:
        yield "definition", f"defines {', '.join(named)}; move it into the package"
    if source.rstrip().endswith(";"):
        yield "semicolon", "ends with ';', which nbval does not silence; write `_ = ...`"


def _check_outputs(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    checked = CHECKED in tags(cell)
    if checked and (not cell.get("outputs") or cell.get("execution_count") is None):
        yield "checked", "is checked but has no output; run `awqbench notebooks refresh`"
    if not checked and cell.get("outputs"):
        yield "checked", f"has outputs but no tag {CHECKED}"
    used = [name for name in _NOT_CHECKABLE if name in cell["source"]]
    if checked and used:
        yield "checked", f"uses {used[0].rstrip('(')}, which nbval cannot compare; untag it"
