"""Bands of predicted cycles carry the error of their method, whatever part of them is drawn."""

import matplotlib.pyplot as plt
import pytest

from awqbench.bench.evidence_records import read_evidence
from awqbench.plots.static_throughput import chosen_bands, plot_static_cycles, prediction_errors


@pytest.fixture(scope="module")
def table():
    return read_evidence("static_throughput").rows


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_band_for_each_core_of_both(table):
    ax = plot_static_cycles(table)
    bands = chosen_bands(table[(table["activations"] == "int16") & (table["tokens"] == 1)])
    assert len(ax.patches) == len(bands) and set(bands["processor"]) == {"aarch64", "x86_64"}
    simulated = bands.groupby("processor")["simulated_cycles_per_1024"]
    title = ax.get_title(loc="left")
    assert f"x86 {simulated.min()['x86_64']:.0f} to {simulated.max()['x86_64']:.0f}" in title
    assert f"ARM {simulated.min()['aarch64']:.0f} to" in title


def test_the_error_stays_when_the_checked_processor_is_not_drawn(table):
    ax = plot_static_cycles(table, processors=["aarch64"])
    errors = prediction_errors(table)
    assert "x86" not in ax.get_title(loc="left")
    assert any(f"{errors.max():+.0%}" in text for text in texts(ax))
    unchecked = table[table["provenance"] == "predicted"]
    assert any("checked on no machine" in text for text in texts(plot_static_cycles(unchecked)))
