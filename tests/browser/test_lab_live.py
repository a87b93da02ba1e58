"""Notebooks with widgets in a live JupyterLab: they open, run, and follow a slider."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
USES_WIDGETS = re.compile(r"\bawqbench\.widgets\b|from awqbench import [^\n]*\bwidgets\b")
SMALL = "small_slider"
SOURCES = (
    "import io\nimport ipywidgets\nfrom matplotlib.figure import Figure",
    """\
def draw(bits):
    figure, buffer = Figure(figsize=(5, 3)), io.BytesIO()
    figure.subplots().step(range(2**bits), range(2**bits))
    figure.savefig(buffer, format="png")
    return buffer.getvalue()""",
    """\
slider = ipywidgets.IntSlider(3, 1, 8, description="bits", continuous_update=False)
picture = ipywidgets.Image(value=draw(3))
slider.observe(lambda change: setattr(picture, "value", draw(change["new"])), "value")
ipywidgets.VBox([slider, picture])""",
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Without it a cell out of sight may not be in the page at all.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
FOLDERS = ("CONFIG", "RUNTIME", "DATA", "LAB_SETTINGS", "LAB_WORKSPACES")
# The indicator says idle before the session is there; running then asks for a kernel.
READY = """async () => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""
RUN_ALL = "() => { jupyterapp.commands.execute('notebook:run-all-cells'); }"
IS_IDLE = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
ALL_RAN = """() => jupyterapp.shell.currentWidget.content.widgets.every(cell =>
  cell.model.type !== 'code' || !cell.model.sharedModel.source.trim()
  || cell.model.executionCount)"""
# The figures' bytes: a widget's image gets a new address even where it shows the same.
FIGURES = """async () => {
  const read = async image => Array.from(new Uint8Array(
    await (await fetch(image.src)).arrayBuffer())).join();
  const images = [...document.querySelectorAll('.jp-OutputArea-output img')];
  const drawn = [...document.querySelectorAll('.jp-OutputArea-output svg')];
  return [...await Promise.all(images.map(read)), ...drawn.map(item => item.outerHTML)];
}"""
# A traceback, and what stands in place of a widget that the page could not build.
ERROR = "[data-mime-type='application/vnd.jupyter.error'], .jupyter-widgets-error-widget"


def notebooks_with_widgets():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return [path for path in paths if USES_WIDGETS.search(path.read_text(encoding="utf-8"))]


NOTEBOOKS = {path.stem: path for path in notebooks_with_widgets()}


@pytest.fixture(scope="module")
def lab_address(browser, tmp_path_factory):
    """`awqbench lab` on the notebooks, away from the user's own settings."""
    home = tmp_path_factory.mktemp("lab")
    small = home / f"{SMALL}.ipynb"
    cells = [new_code_cell(source) for source in SOURCES]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), small)
    environment = {**os.environ, "MPLBACKEND": "Agg", "IPYTHONDIR": str(home / "ipython")}
    for name in FOLDERS:
        prefix = "JUPYTER" if name.startswith("LAB") else "JUPYTER_"
        environment[f"{prefix}{name}_DIR"] = str(home / name)
    for name, content in SETTINGS.items():
        write_json(home / "LAB_SETTINGS" / f"@jupyterlab/{name}.jupyterlab-settings", content)
    write_json(
        home / "CONFIG" / "jupyter_lab_config.json", {"LabApp": {"expose_app_in_browser": True}}
    )
    command = [sys.executable, "-m", "awqbench.cli", "lab", str(small)]
    command += [*map(str, NOTEBOOKS.values()), "--out", str(home / "work"), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        opened = next(line for line in server.stdout if line.startswith("open "))
        yield opened.removeprefix("open ").strip()
        server.send_signal(signal.SIGINT)
        server.wait(60)
    finally:
        server.kill()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.skipif(os.name != "posix", reason="stops the server by POSIX signals")
@pytest.mark.parametrize("name", [SMALL, *NOTEBOOKS])
def test_notebook_runs_and_its_figure_follows_a_slider(lab_address, open_page, screenshots, name):
    page = open_page(viewport={"width": 1400, "height": 1000})
    root, query = lab_address.split("/lab?")
    page.goto(f"{root}/lab/tree/{name}.ipynb?{query}&reset")
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook", timeout=60_000)
    page.evaluate(READY)
    page.evaluate(RUN_ALL)
    page.wait_for_function(ALL_RAN, timeout=120_000)
    before = settled_figures(page)
    assert page.locator(ERROR).all_inner_texts() == []
    assert page.problems == []

    handle = page.locator(".jp-OutputArea-output .widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / f"lab_{name}_before.png")
    handle.focus()
    is_last = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    page.keyboard.press("ArrowLeft" if is_last else "ArrowRight")
    after = settled_figures(page, unlike=before)
    page.screenshot(path=screenshots / f"lab_{name}_after.png")
    assert len(after) == len(before)
    assert page.locator(ERROR).all_inner_texts() == []
    assert page.problems == []


def settled_figures(page, unlike=()):
    """Wait until there are figures other than those given, and nothing moves any more."""
    last = []
    for _ in range(120):
        found = page.evaluate(FIGURES)
        if found and found == last != list(unlike) and page.evaluate(IS_IDLE):
            return found
        last = found
        page.wait_for_timeout(250)
    raise AssertionError("after 30 s the figures are still the same" if unlike else "no figure")
