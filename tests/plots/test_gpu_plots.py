"""Figures of the CUDA kernels: what is drawn, not how."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from awqbench.gemm.cuda_places import fragment_places
from awqbench.plots.gpu_gemm import (
    plot_counted,
    plot_predicted,
    plot_registers,
)
from awqbench.plots.gpu_layout import plot_fragment
from awqbench.plots.gpu_measured import measured_finding, plot_measured


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_registers_mark_spills_and_holes():
    rows = [("a", "80", 3, 100, 0), ("a", "90", 3, 200, 48), ("b", "90", 2, 50, 0)]
    columns = ["kernel", "arch", "programs", "max_registers", "spill_bytes"]
    ax = plot_registers(pd.DataFrame(rows, columns=columns))
    assert sorted(texts(ax))[:1] == ["-"] and "200\n48 B" in texts(ax)
    assert ax.get_title(loc="left").startswith("8 programs") and "48 bytes spilled" in ax.get_title(
        loc="left"
    )


def counted_rows():
    classes = {f"{name}_per_word": 4.0 for name in
               ("mma", "memory", "logic", "integer", "float", "control")}  # fmt: skip
    return pd.DataFrame(
        [
            {"kernel": "w4a16_skinny", "m": 1, "bytes_per_weight": 0.53,
             "instructions_per_word": 24.0, **classes},
            {"kernel": "w4a16_mma", "m": 64, "bytes_per_weight": 0.6,
             "instructions_per_word": 54.0, **classes},
        ]
    )  # fmt: skip


def test_counted_bars_add_up_and_limits_stand():
    bytes_ax, issue_ax = plot_counted(counted_rows(), floor=0.52, budget=32)
    assert [bar.get_width() for bar in bytes_ax.patches] == [0.53, 0.6]
    assert sum(bar.get_width() for bar in issue_ax.patches) == 2 * 6 * 4.0
    assert bytes_ax.lines[0].get_xdata()[0] == 0.52 and issue_ax.lines[0].get_xdata()[0] == 32
    title = bytes_ax.figure.get_suptitle()
    assert "1.9% above" in title and "fit up to M = 1" in title
    title = plot_counted(counted_rows(), floor=0.52, budget=20)[0].figure.get_suptitle()
    assert "do not fit" in title
    three = pd.concat([counted_rows(), counted_rows().assign(m=[8, 128])])
    three["instructions_per_word"] = [24.0, 54.0, 26.0, 30.0]  # M = 64 does not fit, 128 does
    title = plot_counted(three, floor=0.52, budget=32)[0].figure.get_suptitle()
    assert title.endswith("fit up to M = 8")


def test_predictions_are_hatched_and_name_their_limit():
    rows = [
        {"shape": "8x8", "tokens": 1, "kernel": "w4a16_skinny", "ratio": 3.8, "bound": "memory"},
        {"shape": "8x8", "tokens": 999, "kernel": "decode + cuBLAS", "ratio": 0.8,
         "bound": "tensor cores"},
    ]  # fmt: skip
    (ax,) = plot_predicted(pd.DataFrame(rows))
    assert all(bar.get_hatch() for bar in ax.patches)
    assert texts(ax) == ["3.80 m", "0.80 t"] and ax.get_ylim()[0] == 0
    assert "Predicted, not measured" in ax.figure.get_suptitle()


def measured_rows(**changes):
    rows = []
    for tokens in (1, 16):
        for path, times in (("awqbench tiles", 2.0), ("cuBLAS float16", 1.0), ("humming", 1.5)):
            rows.append(
                {"shape": "8x8", "tokens": tokens, "path": path, "vs_cublas": times,
                 "is_peer": "awqbench" not in path, "median_s": 1 / times,
                 "fraction_of_copy": 0.3, "is_wrong": False}
            )  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_measured_lines_leave_cublas_to_the_line_at_one():
    (ax,) = plot_measured(measured_rows())
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["awqbench tiles"] == [2.0, 2.0] and "cuBLAS float16" not in drawn
    assert drawn["cuBLAS, same type"] == [1, 1]
    assert measured_finding(measured_rows()).startswith("Measured: 2.00 times cuBLAS and 30%")


def test_a_wrong_result_is_the_finding():
    rows = measured_rows(is_wrong=lambda rows: rows["path"] == "awqbench tiles")
    assert measured_finding(rows) == "WRONG results: awqbench tiles"
    (ax,) = plot_measured(rows)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert list(crosses[0].get_xdata()) == [1, 16]


@pytest.mark.parametrize("lane", [0, 31])
def test_the_fragment_shows_a_lanes_eight_codes(lane):
    places = fragment_places()
    # PTX ISA: lane 4 g + t holds rows g, g + 8 and columns 2t, 2t + 1, 2t + 8, 2t + 9.
    g, t = divmod(lane, 4)
    own = places[places["lane"] == lane]
    assert set(own["n"]) == {g, g + 8}
    assert set(own["k"]) == {2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9}
    awq, tile, word = plot_fragment(places, lane=lane)
    assert sum(map(str.isdigit, texts(tile))) == 8 and sum(map(str.isdigit, texts(awq))) == 64
    assert f"lane {lane}" in texts(word)


def test_places_are_those_of_a_checkpoint():
    places = fragment_places().set_index(["n", "k"])
    # AutoAWQ's order: nibble i holds output column 0, 2, 4, 6, 1, 3, 5, 7.
    found = [int(places.loc[(n, 3), "awq_nibble"]) for n in range(8)]
    assert found == [0, 4, 1, 5, 2, 6, 3, 7]
    assert places.loc[(9, 3), "awq_word"] == 7 and places.loc[(1, 3), "awq_word"] == 6
