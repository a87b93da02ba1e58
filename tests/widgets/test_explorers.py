"""Every explorer on the embedded model or a small one: controls move, data changes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import ParameterError
from awqbench.widgets import (
    layer_browser,
    placement,
    roofline,
    tensor_parallel,
    what_if,
    xray,
)

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert not plt.get_fignums()


def mean_error(view):
    return view.data["errors"]["output_error"].mean()


def test_what_if_follows_every_control(folder, stats):
    shown = what_if.explore(folder, stats, bandwidth_gb_s=10.0)
    assert shown.state["group_size"] == 32  # the largest that divides 64 and 96
    first = mean_error(shown.view)
    fewer_bits = mean_error(shown.set(bits=3))
    clipped = mean_error(shown.set(clip=True))
    symmetric = mean_error(shown.set(zero_point=False))
    gptq = mean_error(shown.set(rounding="gptq"))
    assert fewer_bits > first and clipped < fewer_bits
    assert len({first, fewer_bits, clipped, symmetric, gptq}) == 5
    assert "tokens/s at 10 GB/s" in shown.view.text
    shown.set(group_size=128)
    assert "down_proj: in_features is 96" in shown.error or "in_features is 64" in shown.error


def test_the_layer_browser_shows_the_chosen_linear(folder, stats):
    shown = layer_browser.explore(folder, stats, linear="model.layers.0.mlp.down_proj")
    errors = shown.view.data["errors"].iloc[0]
    assert errors["linear"] == "mlp.down_proj" and len(shown.view.data["channels"]) == 96
    view = shown.set(linear="model.layers.1.self_attn.q_proj")
    assert len(view.data["channels"]) == 64 and len(view.data["curve"]) == 21
    assert view.text.startswith("model.layers.1.self_attn.q_proj")
    before = view.data["errors"]["output_error"].iloc[0]
    assert shown.set(bits=2).data["errors"]["output_error"].iloc[0] > before


def test_the_layer_browser_refuses_a_linear_that_is_not_there(folder, stats):
    with pytest.raises(ParameterError, match="no linear 'lm_head'"):
        layer_browser.explore(folder, stats, linear="lm_head")


def test_a_red_cell_says_the_rule_and_the_fix():
    shown = tensor_parallel.explore("tiny", tp_sizes=(1, 2), group_sizes=(128, 64))
    assert len(shown.cells.cells) == 4
    assert shown.cells.cells[128, 2].button_style == "danger"
    shown.cells.cells[128, 2].click()
    assert "448 is not a multiple of group_size 128" in shown.answer.value
    assert "awqbench pad" in shown.answer.value
    shown.cells.cells[64, 2].click()
    assert "fits" in shown.answer.value


def test_another_model_or_engine_fills_the_cells_anew():
    shown = tensor_parallel.explore("tiny", tp_sizes=(1, 8), group_sizes=(128,))
    view = shown.set(model="Qwen2-72B")
    assert view.data["chosen"]["number"].tolist()[1] == 29568 // 8
    assert "Click" in shown.answer.value
    engines = {
        shown.set(engine=engine).data["plan"]["engine"].iloc[0] for engine in ("awq", "vllm")
    }
    assert engines == {"awq", "vllm"}


def test_a_config_can_be_planned_for():
    config = dict(hidden_size=512, intermediate_size=1024, num_attention_heads=8)
    shown = tensor_parallel.explore(config, tp_sizes=(2,), group_sizes=(128,))
    assert shown.state["model"] == "model" and shown.view.data["chosen"]["fits"].all()


def test_placement_fits_at_first_and_less_memory_does_not():
    shown = placement.explore("tiny", context=1024)
    first = shown.view.data["devices"]
    assert shown.view.text.startswith("Fits") and len(first) == 2
    longer = shown.set(context=16384).data["devices"]
    assert longer["kv_bytes"].sum() == 16 * first["kv_bytes"].sum()
    assert shown.view.text.startswith("Does not fit")
    shown.reset()
    assert shown.set(cuda_0=0.0, cuda_1=0.0).text.startswith("Does not fit")


def test_placement_of_three_devices_has_three_sliders():
    shown = placement.explore("tiny", devices=3)
    assert [name for name in shown.controls if name.startswith("cuda")] == [
        "cuda_0",
        "cuda_1",
        "cuda_2",
    ]
    assert shown.view.data["devices"]["device"].tolist() == ["cuda:0", "cuda:1", "cuda:2"]


def test_the_roofline_scales_with_the_machine_and_falls_with_bits():
    shown = roofline.explore("tiny", machines={"ten times": 100.0}, bandwidth_gb_s=10.0)
    slow = shown.view.data["bounds"]["tok_per_s"]
    fast = shown.set(machine="ten times").data["bounds"]["tok_per_s"]
    np.testing.assert_allclose(fast, 10 * slow)
    assert shown.set(bits=3).text.count("3 bits") and shown.set(bits=0).text.count("as it is")
    large = shown.set(model="Qwen2-72B").data["bounds"]["tok_per_s"]
    assert (large < fast).all()
    batch = shown.set(batch=8).data["bounds"]["tok_per_s"]
    assert (batch > large).all()


def test_the_xray_looks_through_several_folders(folder, stats, tmp_path):
    ab.quantize(folder, tmp_path / "packed", stats=stats, group_size=32)
    shown = xray.explore([tmp_path / "packed", folder])
    assert len(shown.view.data["linears"]) == 14
    assert "zero points" in shown.set(view="zero points").text
    dense = shown.set(folder=folder.name)
    assert "not quantized" in dense.text and dense.data["linears"].empty
