"""An executed notebook as one HTML file that asks the network for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from awqbench.report.facts import STATUS, parameter_texts, provenance_rows
from awqbench.report.flatten import flatten_widgets
from awqbench.report.record import RunRecord

TEMPLATES = Path(__file__).parent / "templates"
FAILED_ANCHOR = "failed-cell"
# What a browser would fetch by itself; a plain link is not among them.
_FETCHED = {"src", "srcset", "data", "poster", "background", "href", "xlink:href"}
_LINKS_ONLY = {"a", "area"}
_STYLE_REQUEST = re.compile(r"@import[^;]+|url\(\s*['\"]?(?!data:|#)[^)]+\)")


def report_page(notebook: Mapping[str, Any], record: RunRecord, answer: str = "") -> str:
    """Turn an executed notebook and its record into a self-contained page.

    Cells after the one that did not finish are marked as not run. The page forbids
    scripts and requests by its own content security policy.

    Parameters
    ----------
    notebook : mapping
        Executed, format 4.
    record : RunRecord
    answer : str
        The one-line answer; empty where the run did not get that far.

    Returns
    -------
    str
        HTML.
    """
    import nbformat
    from nbconvert import HTMLExporter

    flat = flatten_widgets(notebook)
    flat["metadata"]["title"] = record.title or record.notebook
    exporter = HTMLExporter(
        template_name="awqbench",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )
    context = {
        "record": record,
        "has_title": flat["cells"][:1] != [] and flat["cells"][0]["cell_type"] == "markdown",
        "status": STATUS[record.state],
        "answer": answer,
        "parameters": parameter_texts(record.parameters),
        "provenance": provenance_rows(record),
        "anchor": FAILED_ANCHOR,
    }
    page, _ = exporter.from_notebook_node(nbformat.from_dict(flat), {"awqbench": context})
    return page


def mark_cells(notebook: dict[str, Any], last: int | None) -> None:
    """Mark, in an executed notebook, the cell that did not finish and those not run.

    Parameters
    ----------
    notebook : dict
        Changed in place.
    last : int or None
        Index of the cell that did not finish; None if all did.
    """
    for index, cell in enumerate(notebook["cells"]):
        status = "ok"
        if last is not None and cell["cell_type"] == "code" and index >= last:
            status = "failed" if index == last else "not run"
        cell["metadata"]["awqbench"] = {"status": status}


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []
        self.images_without_alt = 0
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._in_style = tag == "style"
        self._read_style(values.get("style") or "")
        for name, value in values.items():
            is_request = name in _FETCHED and tag not in _LINKS_ONLY
            if is_request and not (value or "").startswith(("data:", "#")):
                self.external.append(f"<{tag} {name}={value}>")
        if tag == "img" and not (values.get("alt") or "").strip():
            self.images_without_alt += 1

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._read_style(data)

    def _read_style(self, text: str) -> None:
        self.external += _STYLE_REQUEST.findall(text)


def external_requests(page: str) -> list[str]:
    """List what a browser would fetch to show a page; links to click don't count.

    Parameters
    ----------
    page : str
        HTML.

    Returns
    -------
    list of str

    Examples
    --------
    >>> external_requests('<a href="https://x.org">x</a><img src="https://x.org/a.png">')
    ['<img src=https://x.org/a.png>']
    """
    reader = _PageReader()
    reader.feed(page)
    return reader.external


def images_without_alt(page: str) -> int:
    """Count the images of a page that a screen reader could not describe."""
    reader = _PageReader()
    reader.feed(page)
    return reader.images_without_alt
