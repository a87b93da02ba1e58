import base64
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from awqbench.report.flatten import WIDGET_STATE, WIDGET_VIEW, flatten_widgets
from awqbench.report.html import (
    external_requests,
    images_without_alt,
    mark_cells,
    report_page,
)
from awqbench.report.record import RunRecord

PIXEL = base64.b64encode(b"\x89PNG, as good as any: nobody decodes it here").decode()
PROVENANCE = {"cpu": "A <CPU>", "python": "3.11", "git_commit": "a" * 40, "git_dirty": True}


def display(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def notebook_of(*outputs, source="x = 1\n\n    # indented"):
    title = new_markdown_cell("# Title <b>\n\nWhy?")
    return new_notebook(cells=[title, new_code_cell(source, outputs=list(outputs))])


def page_of(notebook, state="ok", answer="", **fields):
    record = RunRecord("book", "k" * 64, state, title="Title", provenance=PROVENANCE, **fields)
    return report_page(notebook, record, answer)


def test_page_asks_the_network_for_nothing():
    outputs = [
        display({"application/javascript": "fetch('https://x.org')", "text/plain": "js"}),
        display({"image/png": PIXEL, "text/plain": "p"}, **{"image/png": {"alt": "A dot."}}),
    ]
    page = page_of(notebook_of(*outputs))
    assert external_requests(page) == []
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_the_checker_of_requests_sees_them():
    page = (
        '<script src="https://a/x.js"></script><link href="b.css"><a href="https://ok">x</a>'
        '<style>@import "c.css"; p { background: url(d.png) }</style><p style="x:url(e.png)">'
        '<img src="data:image/png;base64,AA" alt="">'
    )
    assert len(external_requests(page)) == 5
    assert images_without_alt(page) == 1


def test_images_carry_their_alternative_text_and_width():
    about = {"image/png": {"alt": 'RMSE "falls" < 2', "width": 640}}
    page = page_of(notebook_of(display({"image/png": PIXEL, "text/plain": "p"}, **about)))
    assert images_without_alt(page) == 0
    assert 'width="640"' in page
    assert re.search(r'alt="RMSE (&#34;|&quot;|")falls', page) or 'alt=\'RMSE "falls"' in page


def test_code_is_folded_and_kept_as_written():
    page = page_of(notebook_of())
    assert re.search(r'<details class="source">\s*<summary>Code</summary>', page)
    text = re.sub(r"<[^>]+>", "", page)
    assert "x = 1\n\n    # indented" in text.replace("\xa0", " ")


def test_answer_parameters_and_provenance_are_shown_escaped():
    page = page_of(notebook_of(), answer="3 < 4 bits", parameters={"model": "~/m/qwen", "bits": 3})
    assert "3 &lt; 4 bits" in page
    assert "A &lt;CPU&gt;" in page
    assert "<b>qwen</b>" in page
    assert "aaaaaaaa with changes" in page
    assert page.index("<h1") < page.index("3 &lt; 4 bits") < page.index("<details")


def test_a_failed_run_has_a_banner_a_link_and_marks():
    notebook = notebook_of()
    notebook.cells += [new_code_cell("bad()"), new_code_cell("later()")]
    mark_cells(notebook, 2)
    page = page_of(notebook, "failed", cell=2, ename="ValueError", evalue="a < b")
    assert "<strong>ValueError</strong>: a &lt; b" in page
    assert 'href="#failed-cell"' in page
    failing = page.index('id="failed-cell"')
    assert page.index(">bad<") > failing
    assert "Code (not run)" in page[failing:]
    assert "Code (not run)" not in page[:failing]


def test_parameters_injected_by_the_runner_are_not_shown_twice():
    notebook = notebook_of()
    notebook.cells.append(
        new_code_cell("out_dir = 'somewhere'", metadata={"tags": ["injected-parameters"]})
    )
    assert "somewhere" not in page_of(notebook)


def widget(name, **state):
    return {"model_name": f"{name}Model", "state": state}


@pytest.fixture
def explorer():
    """A notebook with a slider, toggles, a table in an Output, and an image."""
    table = {"output_type": "display_data", "data": {"text/html": "<table></table>"}}
    models = {
        "box": widget("VBox", children=[f"IPY_MODEL_{n}" for n in ("a", "b", "c", "d", "e", "f")]),
        "a": widget("IntSlider", description="bits", value=3),
        "b": widget("ToggleButtons", description="rounding", index=1, _options_labels=["n", "g<"]),
        "c": widget("Output", outputs=[{**table, "metadata": {}}]),
        "d": {
            **widget("Image", format="png", tooltip="A dot."),
            "buffers": [{"path": ["value"], "data": PIXEL, "encoding": "base64"}],
        },
        "e": widget("Button", description="Reset"),
        "f": widget("Checkbox", description="clip", value=True),
    }
    notebook = notebook_of(display({WIDGET_VIEW: {"model_id": "box"}, "text/plain": "VBox(...)"}))
    notebook.metadata["widgets"] = {WIDGET_STATE: {"state": models}}
    return notebook


def test_widgets_become_their_values_outputs_and_images(explorer):
    page = page_of(explorer)
    assert "<dt>bits</dt><dd>3</dd><dt>rounding</dt><dd>g&lt;</dd><dt>clip</dt><dd>yes</dd>" in page
    assert "<table></table>" in page
    assert 'alt="A dot."' in page
    assert "Reset" not in page
    assert "VBox(" not in page
    assert external_requests(page) == []


def test_flattening_leaves_the_notebook_itself_alone(explorer):
    before = nbformat.writes(explorer)
    flatten_widgets(explorer)
    assert nbformat.writes(explorer) == before


def test_a_widget_without_state_falls_back_to_its_text():
    notebook = notebook_of(display({WIDGET_VIEW: {"model_id": "gone"}, "text/plain": "Widget(3)"}))
    assert "Widget(3)" in page_of(notebook)
