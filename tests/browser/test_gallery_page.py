"""The pages of a report as a browser shows them: quiet, readable, without scripts."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = 'bits: int = 4  # bits per code\nout_dir: str = ""'
FIGURE = """\
import matplotlib.pyplot as plt
from awqbench.report.results import publish, show
assert bits > 1, "one bit is too few"
figure, ax = plt.subplots(figsize=(7, 4))
_ = ax.plot(range(9), [x**bits for x in range(9)])
show(figure, f"A curve of degree {bits}")
publish(out_dir, f"With {bits} bits the end is {8**bits}.", figure=figure, values={"end": 8**bits})
"""
# Text whose contrast to what lies behind it is under WCAG's 4.5, or 3 where it is large.
FAINT_TEXT = """() => {
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [...(text.startsWith('color(') ? [255 * r, 255 * g, 255 * b] : [r, g, b]), a]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255, 1]; };
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), a = light(rgba(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) faint.push(`${e.tagName} ${e.textContent.trim()} ${ratio}`);
  }
  return faint;
}"""


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """Two folders of reports and their comparison, served on the loopback address."""
    root = tmp_path_factory.mktemp("site")
    title = new_markdown_cell("# How many bits?\n\nHow far does a curve go?")
    tagged = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    for name in ("curve", "other"):
        nbformat.write(
            new_notebook(cells=[title, tagged, new_code_cell(FIGURE)]), root / f"{name}.ipynb"
        )
    report(root, "curve.ipynb", "other.ipynb", "--out", "one")
    report(root, "curve.ipynb", "--out", "two", "-p", "bits=3")
    report(root, "other.ipynb", "--out", "two", "-p", "bits=1", status=1)
    report(root, "--compare", "one", "two", "--out", ".")
    handler = functools.partial(Quiet, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def report(root, *words, status=0):
    command = [sys.executable, "-m", "awqbench.cli", "report", *words]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr


PAGES = ("two/index.html", "two/curve/report.html", "two/other/report.html", "compare.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_page_is_quiet_fits_and_has_contrast(site, open_page, screenshots, path, scheme):
    for width in (1280, 390):
        page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.goto(f"{site}/{path}", wait_until="networkidle")
        page.screenshot(
            path=screenshots / f"{re.sub('[/.]', '_', path)}_{scheme}_{width}.png", full_page=True
        )
        assert page.problems == []
        assert page.requested[0] == f"{site}/{path}"
        assert [url for url in page.requested[1:] if not url.startswith("data:")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert page.evaluate(FAINT_TEXT) == []


def test_contrast_check_finds_faint_text(open_page):
    page = open_page()
    page.set_content("<p style='color: #999; background: #fff'>pale</p><p>dark</p>")
    assert [text.split()[1] for text in page.evaluate(FAINT_TEXT)] == ["pale"]


def test_gallery_reads_without_scripts(site, open_page):
    page = open_page(java_script_enabled=False)
    page.goto(f"{site}/two/index.html")
    assert page.get_by_text("With 3 bits the end is 512.").is_visible()
    assert page.get_by_role("img", name="A curve of degree 3").is_visible()
    assert page.get_by_text("one bit is too few").is_visible()
    assert page.get_by_text("Machine").count() == 1  # said once, for both ran on the same


def test_keyboard_reaches_the_first_report_and_comes_back(site, open_page):
    page = open_page()
    page.goto(f"{site}/two/index.html")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/two/curve/report.html")
    assert page.get_by_text("With 3 bits the end is 512.").first.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/two/index.html")


def test_links_of_the_gallery_and_the_comparison_lead_somewhere(site, open_page):
    for path in ("two/index.html", "compare.html"):
        page = open_page()
        page.goto(f"{site}/{path}")
        links = page.locator("a").evaluate_all("links => links.map(link => link.href)")
        assert len(links) >= 4
        for link in links:
            assert page.request.get(link).status == 200, link


def test_a_failed_run_opens_at_its_cell(site, open_page):
    page = open_page()
    page.goto(f"{site}/two/index.html")
    page.get_by_role("link", name="Open at the cell where it stopped").click()
    cell = page.get_by_text("The run stopped in this cell")
    assert cell.is_visible()
    assert cell.bounding_box()["y"] < 900


@pytest.mark.parametrize("path", PAGES)
def test_page_prints_without_an_empty_page(site, open_page, screenshots, path):
    page = open_page()
    page.goto(f"{site}/{path}")
    target = screenshots / f"{re.sub('[/.]', '_', path)}.pdf"
    pdf = page.pdf(path=target, format="A4")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 3
