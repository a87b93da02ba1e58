"""Figures of the explorers, by what is in their Axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from awqbench.inspect.parallel.plan import plan_tensor_parallel
from awqbench.plots.decode import decode_bars, speed_text
from awqbench.plots.explore import block_losses, fit_grid, predicted_errors
from awqbench.plots.layer import layer_finding, layer_panels
from awqbench.plots.style import BLUE


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def errors(scale):
    rows = [
        (f"model.layers.{i}", path, scale * (i + 1))
        for i in range(3)
        for path in ("self_attn.q_proj", "mlp.up_proj")
    ]
    return pd.DataFrame(rows, columns=["block", "linear", "output_error"])


def test_predicted_errors_are_lines_by_kind_over_those_before():
    ax = predicted_errors(errors(0.02), errors(0.01), conditions="tiny")
    assert len(ax.lines) == 4
    np.testing.assert_allclose(ax.lines[2].get_ydata(), [2, 4, 6])
    assert [text.get_text() for text in ax.get_legend().texts] == ["q_proj", "up_proj"]
    assert ax.get_title(loc="left").endswith(
        "4 % of its output's energy on average, 2 times as much"
    )
    assert "times" not in predicted_errors(errors(0.02), errors(0.02)).get_title(loc="left")


def look(**changes):
    row = {"alpha": 0.5, "rounding_error": 0.02, "output_error": 0.01, "clip_gain": 0.3}
    return {
        "histogram": pd.DataFrame({"low": [0.25, 0.5], "high": [0.5, 1.0], "weights": [1, 3]}),
        "channels": pd.DataFrame(
            {"input_absmax": [1.0, 8.0], "input_mean": [0.5, 0.0], "weight_absmax": [2.0, 1.0]}
        ),
        "curve": pd.DataFrame({"alpha": [np.nan, 0.0, 0.5], "loss": [4.0, 3.0, 2.0]}),
        "row": row,
    } | changes


def test_layer_panels_show_limits_channels_alpha_and_errors():
    weights, channels, curve, bars = layer_panels(**look())
    limits = [line.get_xdata()[0] for line in weights.lines]
    assert limits == [2.0**-24, 2.0**-14, 65504.0]
    np.testing.assert_allclose(weights.patches[0].get_data().values, [25, 75])
    np.testing.assert_array_equal(channels.lines[0].get_ydata(), [8.0, 1.0])
    assert np.isnan(channels.lines[1].get_ydata()[0])  # 0 has no place on a logarithmic axis
    np.testing.assert_allclose(curve.lines[0].get_ydata(), [0.75, 0.5])
    assert curve.lines[2].get_xdata() == [0.5]
    assert [bar.get_width() for bar in bars.patches] == [2.0, 1.0]
    assert "50% less" in weights.figure.get_suptitle()
    assert "as much as rounding" in layer_finding(look()["row"] | {"output_error": 0.01999})
    assert "20% more" in layer_finding(look()["row"] | {"output_error": 0.024})


def test_layer_panels_without_a_search_without_weights_and_of_other_dtypes():
    row = look()["row"] | {"alpha": np.nan}
    no_scaling = layer_panels(**look(row=row), dtype="bfloat16")
    assert len(no_scaling[0].lines) == 0
    assert no_scaling[2].get_title(loc="left") == "No scaling is best"
    none = look()
    panels = layer_panels(**look(curve=none["curve"].iloc[:0], histogram=none["histogram"][:0]))
    assert panels[2].texts[0].get_text() == "no scales were searched here"
    assert panels[0].get_title(loc="left") == "Every weight is 0"


def test_the_grid_marks_what_does_not_fit_with_its_number():
    configs = {
        "wide": dict(hidden_size=512, intermediate_size=1024, num_attention_heads=8),
        "odd": dict(hidden_size=512, intermediate_size=896, num_attention_heads=8),
    }
    plans = [
        plan_tensor_parallel(config, (1, 2), (128,), "vllm").assign(model=name)
        for name, config in configs.items()
    ]
    plan = pd.concat(plans, ignore_index=True)
    ax = fit_grid(plan, chosen="odd")
    assert ax.collections[0].get_array().tolist() == [[1, 1], [1, 0]]
    assert [text.get_text() for text in ax.texts if "✗" in text.get_text()] == ["✗ 448"]
    weights = [label.get_weight() for label in ax.get_yticklabels()]
    assert weights == ["normal", "bold"]
    assert ax.get_title(loc="left").startswith("1 of 2 models")


def test_bounds_are_bars_at_the_shortest_context_and_lines():
    rows = [(c, n, s / n) for c, s in (("as it is", 1e5), ("4 bits", 3e5)) for n in (256, 1024)]
    table = pd.DataFrame(rows, columns=["case", "context", "tok_per_s"])
    bars, lines = decode_bars(table, chosen="4 bits")
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([1e5 / 256, 3e5 / 256])
    np.testing.assert_allclose(lines.lines[1].get_ydata(), [3e5 / 256, 3e5 / 1024])
    assert lines.lines[1].get_color() == BLUE
    assert bars.figure.get_suptitle() == "4 bits: at most 1,172 tokens/s"


def test_block_losses_begin_empty_and_ring_alarms():
    empty = pd.DataFrame(columns=["block", "linear", "output_error", "rounding_error", "alarm"])
    assert block_losses(empty, 4).get_title(loc="left") == "0 of 4 blocks done, 0 alarms"
    table = pd.DataFrame(
        {
            "block": [0, 0, 1],
            "linear": ["a", "b", "a"],
            "output_error": [0.01, 0.2, 0.01],
            "rounding_error": [0.02, 0.3, 0.02],
            "alarm": ["", "output error 20% of the output", ""],
        }
    )
    ax = block_losses(table, 4)
    assert ax.get_title(loc="left") == "2 of 4 blocks done, 1 alarm"
    assert [len(dots.get_offsets()) for dots in ax.collections] == [3, 3, 1]


@pytest.mark.parametrize(("rate", "text"), [(1234.5, "1,234"), (99.6, "99.6"), (0.1234, "0.123")])
def test_rates_are_written_in_three_digits_or_whole(rate, text):
    assert speed_text(rate) == text
