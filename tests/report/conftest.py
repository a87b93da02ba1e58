"""Small notebooks for the tests of the report room."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

COMMON = """\
model: str = "tiny"
bits: int = 4  # bits per code, 2 to 8
seed: int = 0
out_dir: str = ""
"""


def cells_of(*sources, parameters=COMMON, title="# A title\n\nDoes it work?"):
    """Title, parameters, then code cells."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return [new_markdown_cell(title), tagged, *map(new_code_cell, sources)]


@pytest.fixture(scope="session")
def write_notebook():
    """Write a notebook of the given code cells and return its path."""

    def write(path, *sources, **kwargs):
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells_of(*sources, **kwargs)), path)
        return path

    return write
