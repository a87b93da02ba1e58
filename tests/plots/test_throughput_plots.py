import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from awqbench.bench.literature import published_sweeps
from awqbench.bench.throughput import ROW
from awqbench.errors import EmulatedTimingError, ParameterError
from awqbench.plots.style import ORANGE
from awqbench.plots.throughput import plot_sweeps, plot_throughput


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def row(provenance, arch="x86_64", speed=10.0, **changes):
    found = dict.fromkeys(ROW, "") | {"chip": "chip", "model": "m", "quant": "q", "threads": 2}
    found |= {"provenance": provenance, "arch": arch, "tok_per_s": speed}
    return found | {"low": speed / 2, "high": speed * 2, "bandwidth_gb_s": 20.0} | changes


@pytest.fixture
def table():
    return pd.DataFrame(
        [
            row("measured"),
            row("recorded", speed=20.0, machine_id="0123abcd"),
            row("published", "aarch64", 30.0, source="somebody's issue"),
            row("predicted", "aarch64", 40.0),
        ]
    )


def test_each_provenance_has_its_own_mark(table):
    ax = plot_throughput(table)
    marks = {
        (line.get_marker(), line.get_markerfacecolor())
        for line in ax.lines
        if line.get_marker() not in ("None", "")
    }
    assert {marker for marker, _ in marks} == {"o", "s"} and len(marks) == 3
    assert ("o", "white") in marks
    (bar,) = ax.patches
    assert bar.get_hatch() and bar.get_facecolor()[3] == 0
    assert bar.get_edgecolor() == to_rgba(ORANGE)
    assert bar.get_x() == 20 and bar.get_x() + bar.get_width() == pytest.approx(80)
    texts = [text.get_text() for text in ax.texts]
    assert "0123abcd" in texts and "[1]" in texts and "[1] somebody's issue" in texts
    assert ax.get_title(loc="left") == "x86 measured and recorded, ARM published and predicted"


def test_another_column_scales_the_interval_too(table):
    scaled = table.assign(per_gb=table["tok_per_s"] / table["bandwidth_gb_s"])
    ax = plot_throughput(scaled, value="per_gb", label="tokens/s per GB/s")
    (bar,) = ax.patches
    assert (bar.get_x(), bar.get_width()) == pytest.approx((1, 3))
    assert ax.get_xlabel() == "tokens/s per GB/s"


def test_emulated_rows_are_never_drawn(table):
    mixed = pd.concat([table, pd.DataFrame([row("emulated", "aarch64")])])
    with pytest.raises(EmulatedTimingError, match="1 of 5 rows are emulated"):
        plot_throughput(mixed)


def test_rows_must_say_what_they_are(table):
    for wrong in (table.drop(columns="provenance"), table[:0]):
        with pytest.raises(ParameterError, match="a column provenance"):
            plot_throughput(wrong)
    with pytest.raises(ParameterError, match="'guessed' is none of"):
        plot_throughput(table.assign(provenance=["guessed"] * 4))
    with pytest.raises(ParameterError, match="nan is none of"):
        plot_throughput(table.assign(provenance=[float("nan")] * 4))


def test_sweeps_are_hollow_points_and_held_out_lines_are_dashed():
    sweeps = published_sweeps()
    ax = plot_sweeps(sweeps)
    hollow = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in hollow] == [len(s) for s in sweeps.values()]
    assert {line.get_markerfacecolor() for line in hollow} == {"white"}
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(dashed) == len(sweeps)
    assert {text.get_text() for text in ax.texts} >= set(sweeps)
