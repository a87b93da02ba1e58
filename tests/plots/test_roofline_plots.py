import matplotlib.pyplot as plt
import pandas as pd
import pytest

from awqbench.plots.roofline import finding, is_read_bound, plot_rates, plot_roofline
from awqbench.plots.style import BACKEND_COLOURS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def row(path, median_s, gb_s, gflop_per_s, **changes):
    found = {
        "shape": "64x32",
        "bits": 4,
        "group_size": 32,
        "tokens": 1,
        "path": path,
        "is_peer": False,
        "is_wrong": False,
        "is_noisy": False,
        "median_s": median_s,
        "min_s": median_s / 2,
        "gb_s": gb_s,
        "read_gb_s": 20.0,
        "gflop_per_s": gflop_per_s,
        "peak_gflop_per_s": 400.0,
        "rel_error": 1e-5,
    } | changes
    return found | {
        "fraction_of_read": found["gb_s"] / 20,
        "fraction_of_peak": found["gflop_per_s"] / 400,
    }


@pytest.fixture
def case():
    return pd.DataFrame(
        [
            row("numpy", 4e-3, 2.0, 8.0),
            row("native int16", 1e-3, 8.0, 32.0, is_noisy=True),
            row("some peer", 2e-3, 4.0, 16.0, is_peer=True),
            row("fast and wrong", 1e-4, 19.0, 300.0, is_peer=True, is_wrong=True),
        ]
    )


def test_bars_are_rates_fastest_on_top_and_a_line_is_the_probe(case):
    ax = plot_rates(case, conditions="1 thread")
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == ["numpy", "some peer", "native int16 *", "fast and wrong"]
    assert [bar.get_width() for bar in ax.patches] == [2, 4, 8, 19]
    assert "GB/s" in ax.get_xlabel()
    lines = [path.vertices for c in ax.collections for path in c.get_paths()]
    assert any((points[:, 0] == 20).all() for points in lines)
    # The thin line of the first bar runs to its best call, twice as fast.
    assert lines[0][:, 0].tolist() == [2, 4]
    texts = [text.get_text() for text in ax.texts]
    assert "read probe, same run: 20" in texts and "1 ms, error 1e-05" in texts
    assert "0.1 ms, WRONG, error 1e-05" in texts
    assert any(text.endswith("M = 1, 1 thread, * noisy") for text in texts)


def test_colours_tell_own_paths_from_peers_and_from_wrong_ones(case):
    ax = plot_rates(case)
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert len(set(colours)) == 4
    assert colours[2] == plt.matplotlib.colors.to_rgba(BACKEND_COLOURS["native"])


def test_the_title_is_the_finding_and_ignores_wrong_results(case):
    assert finding(case) == "native int16: 40% of the probe, 2x some peer"
    assert plot_rates(case).get_title(loc="left") == finding(case)
    assert finding(case[~case["is_peer"]]) == "native int16: 40% of the probe"
    assert finding(case[case["is_peer"]]).startswith("No path of this package")


def test_many_tokens_are_measured_in_operations(case):
    many = case.assign(tokens=512, gb_s=0.1, fraction_of_read=0.005, fraction_of_peak=0.5)
    assert is_read_bound(case) and not is_read_bound(many)
    ax = plot_rates(many)
    assert "GFLOP/s" in ax.get_xlabel()
    assert [bar.get_width() for bar in ax.patches] == [8, 16, 32, 300]
    assert "fastest matmul, same run: 400" in [text.get_text() for text in ax.texts]


def test_a_panel_for_the_fewest_and_the_most_tokens_of_the_first_shape(case):
    tables = [case.assign(tokens=m) for m in (16, 1, 512)]
    other = case.assign(shape="8x8", tokens=4096)
    axes = plot_roofline(pd.concat([*tables, other]))
    texts = [" ".join(text.get_text() for text in ax.texts) for ax in axes]
    assert len(axes) == 2 and "M = 1" in texts[0] and "M = 512" in texts[1]
    assert len(plot_roofline(case)) == 1


def test_speed_bought_with_accuracy_is_no_finding(case):
    coarse = pd.DataFrame([row("native int8", 5e-4, 16.0, 64.0, rel_error=6e-3)])
    both = pd.concat([case, coarse], ignore_index=True)
    assert finding(both).startswith("native int16: 40%")
    assert finding(both[both["path"] != "some peer"]).startswith("native int8: 80%")
    only = both[both["path"].isin(["native int8", "some peer"])]
    assert finding(only) == "native int8: 80% of the probe, 4x some peer"
