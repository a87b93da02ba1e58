"""Widgets without JavaScript: what their stored state shows, as static outputs.

A report is one file without a kernel, so a live slider would mislead and a widget view
would be blank. The values of the controls stay, and so do the outputs and images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# A button, or a bar at 100 %, says nothing on paper.
_SILENT = {"Button", "IntProgress", "FloatProgress", "Play", "FileUpload"}


def flatten_widgets(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each widget view by a list of control values and the outputs it holds.

    Parameters
    ----------
    notebook : mapping
        Executed, with the widget state in its metadata.

    Returns
    -------
    dict
        A copy; without widget state, views fall back to their plain text.
    """
    flat = copy.deepcopy(notebook)
    stored = flat["metadata"].pop("widgets", {}).get(WIDGET_STATE, {})
    models = stored.get("state", {})
    for cell in flat["cells"]:
        if cell["cell_type"] == "code":
            outputs = [new for old in cell["outputs"] for new in _flatten(old, models)]
            cell["outputs"] = outputs
    return flat


def _flatten(output: dict[str, Any], models: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    view = output.get("data", {}).get(WIDGET_VIEW)
    if view is None:
        yield output
        return
    parts = list(_parts(view["model_id"], models))
    controls = [part for part in parts if isinstance(part, tuple)]
    if controls:
        yield _control_list(controls)
    yield from (part for part in parts if not isinstance(part, tuple))
    if not parts and view["model_id"] not in models and "text/plain" in output["data"]:
        yield _display({"text/plain": output["data"]["text/plain"]})


def _parts(model_id: str, models: Mapping[str, Any]) -> Iterator[tuple[str, str] | dict]:
    """Walk a widget tree: a (label, value) pair per control, an output per display."""
    model = models.get(model_id.removeprefix("IPY_MODEL_"))
    if model is None:
        return
    name, state = model["model_name"].removesuffix("Model"), model["state"]
    if name == "Output":
        for output in state.get("outputs", []):
            yield from _flatten(output, models)
    elif name in ("HTML", "HTMLMath", "Label"):
        value = state.get("value", "")
        yield _display({"text/html": value if name != "Label" else escape(value)})
    elif name == "Image":
        yield from _image(model)
    elif "children" in state:
        for child in state["children"]:
            yield from _parts(child, models)
    elif name not in _SILENT:
        yield state.get("description") or name, _value(state)


def _value(state: Mapping[str, Any]) -> str:
    labels, index = state.get("_options_labels"), state.get("index")
    if labels and isinstance(index, int):
        return str(labels[index])
    if labels and isinstance(index, list):
        return ", ".join(str(labels[i]) for i in index)
    value = state.get("value")
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "not set"}[value]
    return str(value)


def _image(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    state = model["state"]
    buffers = {tuple(b["path"]): b["data"] for b in model.get("buffers", state.get("buffers", []))}
    if ("value",) in buffers:
        mime = f"image/{(state.get('format') or 'png').replace('jpg', 'jpeg')}"
        alt = state.get("tooltip") or "Figure; the text beside it says what it shows."
        yield _display({mime: buffers[("value",)]}, {mime: {"alt": alt}})


def _control_list(controls: list[tuple[str, str]]) -> dict[str, Any]:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in controls)
    text = ", ".join(f"{label} {value}" for label, value in controls)
    return _display({"text/html": f'<dl class="controls">{rows}</dl>', "text/plain": text})


def _display(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}
