"""Who runs a cell decides what an explorer shows: a person's front end, or nbclient."""

import queue

import pytest
from jupyter_client.manager import start_new_kernel

CELL = """
import awqbench.widgets.controls as controls
from awqbench.widgets.drawing import View
import matplotlib.pyplot as plt
def look(n):
    _, ax = plt.subplots()
    ax.set_title(f"n is {n}")
    return View(ax, f"n is {n}", {})
controls.Explorer({"n": controls.whole("n", 1, 0, 9)}, look)
"""
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def client():
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, metadata):
    """Run the cell as a front end does that sends this metadata, and return what is shown."""
    content = {"code": CELL, "silent": False, "store_history": True, "allow_stdin": False}
    message = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(message)
    while True:
        answer = client.get_iopub_msg(timeout=60)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        assert answer["msg_type"] != "error", answer["content"]["evalue"]
        if answer["msg_type"] in ("execute_result", "display_data"):
            return answer["content"]["data"]


def test_nbclient_gets_the_picture_alone(client):
    assert set(run(client, {})) == {"text/plain", "image/png"}


def test_a_front_end_that_names_its_cell_gets_widgets_and_the_picture(client):
    data = run(client, {"cellId": "some-cell", "deletedCells": [], "recordTiming": False})
    assert set(data) == {"text/plain", "image/png", VIEW}


SLIDER = """
shown = controls.Explorer({"n": controls.whole("n", 1, 0, 9)}, look, live=True)
print(shown.controls["n"].model_id, shown.picture.image.model_id)
"""


def move(client, slider, value):
    """Send what a browser sends when a slider is moved."""
    data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
    message = client.session.msg("comm_msg", {"comm_id": slider, "data": data})
    client.shell_channel.send(message)


def pictures_until_quiet(client, image, quiet_s=1.0):
    """Count the pictures that the kernel sends, until it is quiet."""
    count = 0
    while True:
        try:
            answer = client.get_iopub_msg(timeout=quiet_s)
        except queue.Empty:
            return count
        content = answer["content"]
        is_update = answer["msg_type"] == "comm_msg" and content["comm_id"] == image
        count += is_update and "value" in content["data"]["state"]


def test_in_a_kernel_many_moves_of_a_slider_draw_few_pictures(client):
    run(client, {})
    said = []
    client.execute_interactive(SLIDER, output_hook=said.append, timeout=60)
    text = next(m["content"]["text"] for m in said if m["msg_type"] == "stream")
    slider, image = text.split()
    pictures_until_quiet(client, image)
    move(client, slider, 3)
    assert pictures_until_quiet(client, image) == 1
    for value in (4, 5, 6, 7, 8):
        move(client, slider, value)
    assert 1 <= pictures_until_quiet(client, image) <= 3
    client.execute_interactive("print(shown.view.text)", output_hook=said.append, timeout=60)
    assert "n is 8" in [m["content"].get("text", "").strip() for m in said]
