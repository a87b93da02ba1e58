"""Explorers without a browser: debounce, errors, and what is shown where."""

import asyncio
import base64

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from awqbench.errors import AlignmentError, ParameterError
from awqbench.widgets import controls
from awqbench.widgets.controls import CellGrid, Explorer
from awqbench.widgets.drawing import DEBOUNCE_S, Debounced, View

VIEW = "application/vnd.jupyter.widget-view+json"


def look(n, squared):
    if n == 7:
        raise AlignmentError("7 does not divide <anything>")
    _, ax = plt.subplots()
    ax.plot([0, n])
    return View(
        ax, f"n is {n}", {"table": pd.DataFrame({"n": [n**2 if squared else n]})}, "<b>b</b>"
    )


def explorer(**changes):
    made = {"n": controls.whole("n", 1, 0, 9), "squared": controls.tick("squared", False)}
    return Explorer(made, look, **changes)


def test_a_moved_control_draws_and_closes_a_figure():
    plt.close("all")  # those of other tests in this process
    shown = explorer()
    before = shown.picture.png
    shown.controls["n"].value = 3
    assert shown.picture.png != before and shown.picture.png.startswith(b"\x89PNG")
    assert shown.view.data["table"]["n"].tolist() == [3]
    assert "n is 3" in shown.picture.status.value and shown.picture.details.value == "<b>b</b>"
    assert 'alt="n is 3" width="640" height="480"' in shown.picture.image.value
    assert not plt.get_fignums()


def test_controls_are_set_by_name_and_put_back():
    shown = explorer()
    assert shown.set(n=3, squared=True).data["table"]["n"].tolist() == [9]
    shown.reset()
    assert shown.state == {"n": 1, "squared": False} and shown.view.text == "n is 1"
    with pytest.raises(ParameterError, match="there are n, squared"):
        shown.set(m=1)


def test_an_error_is_said_and_the_picture_stays():
    shown = explorer()
    before = shown.picture.png
    shown.set(n=7)
    assert shown.error == "7 does not divide <anything>" and shown.picture.png == before
    assert "AlignmentError: 7 does not divide &lt;anything&gt;" in shown.picture.status.value
    shown.set(n=2)
    assert shown.error == "" and "n is 2" in shown.picture.status.value


def test_an_error_at_the_first_state_is_raised():
    with pytest.raises(AlignmentError):
        Explorer({"n": controls.whole("n", 7, 0, 9), "squared": controls.tick("s", False)}, look)


def test_without_widgets_the_picture_is_shown_and_with_them_both_are():
    data, metadata = explorer()._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"}
    assert data["text/plain"] == metadata["image/png"]["alt"] == "n is 1"
    shown = explorer(live=True)
    data, _ = shown._repr_mimebundle_()
    assert data[VIEW]["model_id"] == shown.box.model_id
    assert base64.b64decode(data["image/png"]) == shown.picture.png


def events_in_loop(times_s, *, delay_s=0.05):
    """Return when an action was called, for events at these times."""
    calls = []

    async def send():
        loop = asyncio.get_running_loop()
        start = loop.time()
        noted = Debounced(lambda: calls.append(loop.time() - start), delay_s)
        for at in times_s:
            await asyncio.sleep(max(0.0, start + at - loop.time()))
            noted()
        await asyncio.sleep(3 * delay_s)

    asyncio.run(send())
    return calls


def test_a_single_event_is_answered_at_once():
    assert len(events_in_loop([0.0])) == 1


def test_a_newer_event_cancels_the_older():
    calls = events_in_loop([0.0, 0.001, 0.002, 0.003, 0.004])
    assert len(calls) == 2  # the first, and one for all that followed it


def test_events_without_a_loop_are_answered_at_once():
    calls = []
    noted = Debounced(lambda: calls.append(1))
    noted()
    noted("an event")
    assert calls == [1, 1]


def test_dragging_a_slider_draws_its_last_value():
    shown = explorer()

    async def drag():
        for n in (2, 3, 4, 5):
            shown.controls["n"].value = n
        await asyncio.sleep(3 * DEBOUNCE_S)

    asyncio.run(drag())
    assert shown.view.text == "n is 5"


def test_many_options_are_a_list_and_few_are_buttons():
    assert type(controls.choice("c", "ab", "b")).__name__ == "ToggleButtons"
    assert type(controls.choice("c", "abcdefghi", "c")).__name__ == "Dropdown"
    assert controls.powers("p", 8, 1, 16).options == (
        ("1", 1),
        ("2", 2),
        ("4", 4),
        ("8", 8),
        ("16", 16),
    )


def test_cells_say_by_colour_and_text_whether_they_fit_and_can_be_clicked():
    clicked = []
    grid = CellGrid(clicked.append)
    grid.fill({"group 128": {(128, 1): ("1: fits", True), (128, 2): ("2: ✗ 448", False)}})
    assert [cell.button_style for cell in grid.cells.values()] == ["info", "danger"]
    grid.cells[128, 2].click()
    assert clicked == [(128, 2)]
