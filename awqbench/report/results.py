"""What a notebook says at its end: show a figure, publish the answer and its data.

A notebook calls `publish` in any case. With an empty `out_dir`, as in Jupyter, it shows
the answer and writes nothing; under `awqbench report` it also writes files.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.errors import OutputError, ParameterError
from awqbench.report.record import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

RESULTS_SCHEMA = "awqbench-results-1"
# Twice the pixels of the size shown, for sharp text on dense screens.
_SCREEN_DPI = 100
_PIXEL_RATIO = 2
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def show(figure: Figure | Axes, alt: str) -> None:
    """Display a figure with a sentence that says what it shows.

    The sentence is the image's alternative text in the report, its plain-text form in a
    terminal, and what nbval compares in place of pixels. The figure is closed in pyplot,
    so that it does not appear twice.

    Parameters
    ----------
    figure : Figure or Axes
    alt : str
        What a reader who cannot see the figure should know: the finding, with numbers.

    Raises
    ------
    ParameterError
        If `alt` is empty.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    figure = _figure(figure)
    figure.set_label(_checked_alt(alt))
    png = _render(figure, "png")
    width = round(figure.get_figwidth() * _SCREEN_DPI)
    display(
        {"image/png": base64.b64encode(png).decode(), "text/plain": alt},
        metadata={"image/png": {"alt": alt, "width": width}},
        raw=True,
    )
    plt.close(figure)


def publish(
    out_dir: str,
    answer: str,
    *,
    figure: Figure | Axes | None = None,
    figures: Mapping[str, Figure | Axes] | None = None,
    tables: Mapping[str, DataFrame] | None = None,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Show the answer, and write it with its data where the report asked for it.

    Writes tables/NAME.csv, figures/NAME.png and .svg, and last results.json, so that a
    results.json always has its files.

    Parameters
    ----------
    out_dir : str
        The notebook's parameter; empty means show only.
    answer : str
        One sentence that answers the notebook's question, with its number.
    figure : Figure or Axes, optional
        The headline figure, written as ``figures/headline``; shown before with `show`.
    figures : mapping of str to Figure or Axes, optional
        More figures by file name.
    tables : mapping of str to DataFrame, optional
        Tidy tables by file name; the index is not written.
    values : mapping of str to object, optional
        Named results. NumPy scalars and arrays become numbers and lists; NaN and
        infinities become text, since JSON has no such numbers.

    Raises
    ------
    ParameterError
        If `answer` has no number, a figure was not shown, or a name is no file name.
    OutputError
        If `out_dir` cannot be written.
    """
    if not re.search(r"\d", answer):
        raise ParameterError(f"the answer {answer!r} holds no number; say how much.")
    drawn = {} if figure is None else {"headline": _figure(figure)}
    drawn |= {name: _figure(item) for name, item in (figures or {}).items()}
    tables = tables or {}
    for name in (*drawn, *tables):
        if not _FILE_NAME.fullmatch(name):
            raise ParameterError(f"{name!r} names a file; use a-z, 0-9 and _ only.")
    content = {
        "schema": RESULTS_SCHEMA,
        "answer": answer,
        "values": _plain(values or {}),
        "figures": [{"name": n, "alt": _checked_alt(f.get_label())} for n, f in drawn.items()],
        "tables": [{"name": n, "rows": len(t), "columns": list(t)} for n, t in tables.items()],
    }
    if out_dir:
        _write(Path(out_dir), content, drawn, tables)
    _show_answer(answer)


def read_results(folder: Path) -> dict[str, Any]:
    """Read results.json of a run.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict
        Empty where there is none, or it is not ours.
    """
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(content, dict) and content.get("schema") == RESULTS_SCHEMA
    return content if is_ours else {}


def _write(
    folder: Path,
    content: Mapping[str, Any],
    figures: Mapping[str, Figure],
    tables: Mapping[str, DataFrame],
) -> None:
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "tables").mkdir(exist_ok=True)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                write_atomic(folder / "figures" / f"{name}.{kind}", _render(figure, kind))
        for name, table in tables.items():
            write_atomic(folder / "tables" / f"{name}.csv", table.to_csv(index=False))
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / "results.json", text + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write results into {folder}: {error.strerror}; choose another out_dir, "
            "or leave it empty to show them only."
        ) from error


def _show_answer(answer: str) -> None:
    from IPython import get_ipython

    if get_ipython() is None:
        print(f"Answer: {answer}")
        return
    from IPython.display import display

    text = {"text/markdown": f"**Answer.** {answer}", "text/plain": f"Answer: {answer}"}
    display(text, raw=True)


def _render(figure: Figure, kind: str) -> bytes:
    """Draw a figure to bytes, the same bytes each time: no date, fixed ids."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "awqbench"}):
        figure.savefig(
            buffer,
            format=kind,
            dpi=_SCREEN_DPI * _PIXEL_RATIO,
            facecolor="white",
            metadata=metadata,
        )
    return buffer.getvalue()


def _figure(item: Any) -> Figure:
    from matplotlib.figure import Figure

    figure = item if isinstance(item, Figure) else getattr(item, "figure", None)
    if not isinstance(figure, Figure):
        raise ParameterError(f"a {type(item).__name__} is neither a Figure nor Axes.")
    return figure


def _checked_alt(alt: str) -> str:
    if not alt.strip():
        raise ParameterError("a figure has no alternative text; call show(figure, alt) first.")
    return alt


def _plain(value: Any) -> Any:
    """Turn NumPy data into JSON data; other types are an error of json.dumps."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ParameterError(f"a {type(value).__name__} in values; use numbers, text, lists, dicts.")
