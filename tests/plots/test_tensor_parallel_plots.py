import matplotlib.pyplot as plt
import pytest

from awqbench.inspect.parallel.plan import plan_tensor_parallel
from awqbench.plots.tensor_parallel import finding, plot_fits

QWEN2_72B = dict(
    hidden_size=8192, intermediate_size=29568, num_attention_heads=64, num_key_value_heads=8
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_panel_for_each_engine_and_a_cell_for_each_combination():
    plan = plan_tensor_parallel(QWEN2_72B)
    panels = plot_fits(plan, conditions="Qwen2-72B")
    assert [ax.get_title(loc="left") for ax in panels] == list(dict.fromkeys(plan["engine"]))
    for ax, (_, rows) in zip(panels, plan.groupby("engine", sort=False), strict=True):
        texts = [text.get_text() for text in ax.texts]
        assert len(ax.patches) == len(texts) == 12
        assert texts.count("fits") == rows["fits"].sum()
        colours = {patch.get_facecolor() for patch in ax.patches}
        assert len(colours) == 2


def test_a_broken_cell_shows_its_number():
    ax = plot_fits(plan_tensor_parallel(QWEN2_72B, (1, 4), (128,), "vllm"))[0]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "fits", (0, 1): "✗ 7392"}


@pytest.mark.parametrize(
    ("change", "group_sizes", "expected"),
    [
        ({}, (128, 64, 32), "Most ranks on vllm: 1 at group 128, 2 at group 64, 4 at group 32"),
        ({"hidden_size": 8200}, (128,), "Nothing fits on vllm"),
        ({"intermediate_size": 29696}, (128, 64), "Up to 8 ranks fit on vllm, whatever the"),
        ({}, (-1, 128), "Most ranks on vllm: 1 at whole rows, 1 at group 128"),
    ],
)
def test_the_title_is_the_finding(change, group_sizes, expected):
    plan = plan_tensor_parallel(QWEN2_72B | change, group_sizes=group_sizes, engine="vllm")
    if group_sizes == (-1, 128):
        expected = "Up to 1 rank fit on vllm, whatever the group size"
    assert finding(plan).startswith(expected)
    assert plot_fits(plan)[0].figure.get_suptitle() == finding(plan)
