"""Controls, a figure that follows them, and how both are shown: the one user of ipywidgets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from awqbench.errors import AwqbenchError, ParameterError
from awqbench.widgets.drawing import Debounced, View, collection_postponed, render

# More choices than these are a list to open, fewer are buttons.
_MAX_BUTTONS = 8
_LABEL = {"description_width": "initial"}
_VIEW = "application/vnd.jupyter.widget-view+json"


class Picture:
    """An image with its finding in words and details below.

    `view` is what is shown and `png` its picture; `error` is the text of the error that kept a
    newer one from being drawn, or ``""``.
    """

    def __init__(self) -> None:
        self.view: View | None = None
        self.error = ""
        self.png = b""
        # Not widgets.Image: that has no alternative text, and fails in JupyterLab with a tooltip.
        self.image = widgets.HTML()
        self.status, self.details = widgets.HTML(), widgets.HTML()
        self.children = [self.image, self.status, self.details]

    def show(self, view: View) -> None:
        """Draw a view, and close its figure."""
        self.view, self.error = view, ""
        self.png = render(view.axes)
        self.image.value = _image(self.png, view.text)
        self.status.value = _status(view.text)
        self.details.value = view.details

    def show_error(self, error: AwqbenchError) -> None:
        """Say what is wrong and keep the last picture."""
        self.error = str(error)
        self.status.value = _status(f"{type(error).__name__}: {error}", colour="#a33c00")


class Explorer:
    """Controls beside a picture that is drawn anew when one of them changes.

    Parameters
    ----------
    controls : mapping of str to widget
        By the name of the argument that each one gives.
    look : callable
        Takes the values of all controls by name and returns a View. An AwqbenchError that
        it raises is shown in place of the finding; at the first state it is raised.
    below : iterable of widget
        More widgets, below the picture.
    live : bool, optional
        Whether to show controls; default, whether the front end seems to run widgets.
    """

    def __init__(
        self,
        controls: Mapping[str, widgets.Widget],
        look: Callable[..., View],
        *,
        below: Iterable[widgets.Widget] = (),
        live: bool | None = None,
    ):
        self.controls, self.look, self.live = dict(controls), look, live
        self.picture = Picture()
        self.first = self.state
        self._shown = self.first
        self.picture.show(look(**self.first))
        self._changed = Debounced(self.refresh)
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        reset = button("Reset", self.reset)
        rows = widgets.Box([*self.controls.values(), reset], layout=_wrapped())
        self.box = widgets.VBox([rows, *self.picture.children, *below])

    @property
    def state(self) -> dict[str, Any]:
        """Values of the controls by name."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def view(self) -> View:
        """What is shown."""
        return self.picture.view

    @property
    def error(self) -> str:
        """Why the last state could not be shown, or ``""``."""
        return self.picture.error

    def set(self, **values: Any) -> View:
        """Move controls, as a user would, and return what is shown then.

        Raises
        ------
        ParameterError
            If there is no such control.
        """
        for name, value in values.items():
            if name not in self.controls:
                raise ParameterError(f"no control {name!r}; there are {', '.join(self.controls)}.")
            self.controls[name].value = value
        self.refresh()
        return self.view

    def reset(self) -> None:
        """Put every control back."""
        self.set(**self.first)

    def refresh(self) -> None:
        """Draw the present state, unless it is shown."""
        state = self.state
        if state == self._shown:
            return
        self._shown = state
        try:
            with collection_postponed():
                self.picture.show(self.look(**state))
        except AwqbenchError as error:
            self.picture.show_error(error)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        return bundle(self.box, self.picture, live=self.live)


def bundle(box: widgets.Widget, picture: Picture, *, live: bool | None) -> tuple[dict, dict]:
    """Return what to display: the picture, and the widgets too where they may run.

    A front end that runs widgets prefers them; one that does not takes the picture.
    """
    text = picture.view.text
    data = {"text/plain": text, "image/png": base64.b64encode(picture.png).decode()}
    if runs_widgets() if live is None else live:
        data[_VIEW] = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    return data, {"image/png": {"alt": text}}


def runs_widgets() -> bool:
    """Tell whether a person's front end asked for this cell to be run.

    JupyterLab, Notebook 7, VS Code and Colab say in the request which cell they run; nbclient,
    which papermill and nbconvert run cells with, says nothing.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if kernel is not None else None
    return bool(parent and parent.get("metadata"))


def choice(label: str, options: Iterable, value: Any = None) -> widgets.Widget:
    """Make a choice of a few (buttons) or of many (a list); options may be (name, value)."""
    options = list(options)
    if len(options) > _MAX_BUTTONS:
        return listed(label, options, value)
    style = _LABEL | {"button_width": "auto"}
    made = widgets.ToggleButtons(options=options, description=label, style=style)
    if value is not None:
        made.value = value
    return made


def listed(label: str, options: Iterable, value: Any = None) -> widgets.Widget:
    """Make a list to open."""
    made = widgets.Dropdown(options=list(options), description=label, style=_LABEL)
    if value is not None:
        made.value = value
    return made


def whole(label: str, value: int, low: int, high: int) -> widgets.Widget:
    """Make a slider over whole numbers."""
    return widgets.IntSlider(value=value, min=low, max=high, description=label, style=_LABEL)


def number(label: str, value: float, low: float, high: float, *, step: float) -> widgets.Widget:
    """Make a slider over numbers."""
    limits = {"min": low, "max": high, "step": step}
    return widgets.FloatSlider(value=value, description=label, style=_LABEL, **limits)


def powers(label: str, value: int, low: int, high: int) -> widgets.Widget:
    """Make a slider over powers of two from `low` to `high`.

    Raises
    ------
    ParameterError
        If `value` is none of them.
    """
    values = [2**i for i in range(low.bit_length() - 1, high.bit_length())]
    if value not in values:
        near = min(values, key=lambda v: abs(v - value))
        raise ParameterError(f"{label} is {value}; choose a power of two, such as {near}.")
    options = [(f"{v:,}", v) for v in values]
    return widgets.SelectionSlider(options=options, value=value, description=label, style=_LABEL)


def tick(label: str, value: bool) -> widgets.Widget:
    """Make a box to tick."""
    return widgets.Checkbox(value=value, description=label, indent=False)


def button(label: str, action: Callable[[], Any], *, style: str = "") -> widgets.Widget:
    """Make a button."""
    made = widgets.Button(description=label, button_style=style, layout={"width": "auto"})
    made.on_click(lambda _: action())
    return made


def progress(total: int) -> widgets.Widget:
    """Make a bar of so many steps."""
    return widgets.IntProgress(value=0, min=0, max=total, description="blocks", style=_LABEL)


def note(html: str = "") -> widgets.Widget:
    """Make a place for HTML."""
    return widgets.HTML(html)


def column(children: Iterable[widgets.Widget]) -> widgets.Widget:
    """Put widgets below one another."""
    return widgets.VBox(list(children))


def row(children: Iterable[widgets.Widget]) -> widgets.Widget:
    """Put widgets beside one another, on more lines where they do not fit."""
    return widgets.Box(list(children), layout=_wrapped())


class CellGrid:
    """Buttons in rows and columns: a cell that is wrong is red and says why when clicked.

    Parameters
    ----------
    on_click : callable
        Takes the key of the cell.
    """

    def __init__(self, on_click: Callable[[Any], None]):
        self.on_click = on_click
        self.cells: dict[Any, widgets.Button] = {}
        self.box = widgets.VBox()

    def fill(self, rows: Mapping[str, Mapping[Any, tuple[str, bool]]]) -> None:
        """Make rows of cells: by a row's label and a cell's key, its text and whether it fits."""
        lines, self.cells = [], {}
        for label, cells in rows.items():
            line = [widgets.Label(label, layout={"width": "8em"})]
            for key, (text, fits) in cells.items():
                cell = widgets.Button(description=text, layout={"width": "9em"})
                cell.button_style = "info" if fits else "danger"
                cell.on_click(lambda _, key=key: self.on_click(key))
                self.cells[key] = cell
                line.append(cell)
            lines.append(widgets.Box(line, layout=_wrapped()))
        self.box.children = lines


def paragraph(text: str) -> str:
    """Return text as HTML, safe whatever a model's folder names its layers."""
    return f"<p>{escape(text)}</p>"


def _image(png: bytes, alt: str) -> str:
    # Its size is in the first bytes; saying it keeps the page from jumping.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    size = f'width="{width}" height="{height}" style="max-width:100%;height:auto"'
    return f'<img alt="{escape(alt)}" {size} src="{source}">'


def _status(text: str, *, colour: str = "inherit") -> str:
    style = f'style="color:{colour}"'
    return f'<output role="status" data-test="status" {style}>{escape(text)}</output>'


def _wrapped() -> widgets.Layout:
    return widgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
