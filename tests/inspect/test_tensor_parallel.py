import pytest

from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.tensor_parallel import tensor_parallel_fit, tensor_parallel_problems

# The embedded model's shape: intermediate_size is 7 x 128.
TINY = dict(
    hidden_size=256,
    intermediate_size=896,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
QWEN2_72B = dict(
    hidden_size=8192, intermediate_size=29568, num_attention_heads=64, num_key_value_heads=8
)


def fitting(table):
    """The (tp_size, group_size) pairs that fit."""
    rows = table[table["fits"]]
    return set(zip(rows["tp_size"], rows["group_size"], strict=True))


def test_seven_times_128_breaks_at_two_ranks():
    table = tensor_parallel_fit(TINY, (1, 2), (128, 64))
    assert fitting(table) == {(1, 128), (1, 64), (2, 64)}
    reason = table.query("tp_size == 2 and group_size == 128")["reason"].item()
    assert reason == (
        "model.layers.*.mlp.down_proj: in_features 896 / 2 = 448 is not a multiple of "
        "group_size 128 (remainder 64)"
    )


def test_qwen2_72b_breaks_as_its_users_found():
    fits = fitting(tensor_parallel_fit(QWEN2_72B))
    assert {(1, 128), (2, 64), (4, 32)} <= fits
    assert not fits & {(2, 128), (4, 128), (8, 128), (4, 64), (8, 64), (8, 32)}


def test_padding_mends_it():
    table = tensor_parallel_fit(QWEN2_72B | {"intermediate_size": 29696}, (2, 4, 8), (128,))
    assert table["fits"].all()


def test_heads_are_not_split():
    broken = tensor_parallel_problems(TINY, 8, 32)
    assert broken[0] == "num_attention_heads 4 is not a multiple of tp_size 8"
    assert "(and " in tensor_parallel_fit(TINY, (8,), (128,))["reason"].item()


@pytest.mark.parametrize(
    ("key_value", "tp_size", "message"),
    [
        (2, 4, ""),
        (4, 2, ""),
        (6, 4, "num_key_value_heads 6 is not a multiple of tp_size 4"),
        (3, 4, "tp_size 4 is not a multiple of num_key_value_heads 3"),
    ],
)
def test_key_value_heads_divide_or_are_copied(key_value, tp_size, message):
    config = dict(
        hidden_size=3072,
        intermediate_size=4096,
        num_attention_heads=24,
        num_key_value_heads=key_value,
        head_dim=128,
    )
    found = [text for text in tensor_parallel_problems(config, tp_size, 32) if "key_value" in text]
    assert found == ([message] if message else [])


def test_outputs_fill_packed_words():
    config = TINY | {"intermediate_size": 32 * 9, "hidden_size": 256}
    broken = tensor_parallel_problems(config, 8, 32)
    assert any("gate_proj: out_features 288 / 8 = 36 is not a multiple of 8" in b for b in broken)


def test_whole_rows_cannot_be_split():
    table = tensor_parallel_fit(TINY, (1, 2), (-1,))
    assert table["fits"].tolist() == [True, False]


def test_one_rank_needs_whole_groups_too():
    broken = tensor_parallel_problems(TINY | {"hidden_size": 320}, 1, 128)
    assert any("q_proj: in_features 320 is not a multiple of group_size 128" in b for b in broken)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "phi3"])
def test_headers_give_what_the_config_gives(architecture, tmp_path):
    from tiny_models import save_tiny_model

    ckpt = open_checkpoint(save_tiny_model(architecture, tmp_path / "model"))
    from_headers = tensor_parallel_fit(ckpt, (1, 2, 4), (32, 16))
    from_config = tensor_parallel_fit(ckpt.config, (1, 2, 4), (32, 16))
    assert from_headers["fits"].tolist() == from_config["fits"].tolist()
    row = from_headers.query("tp_size == 2 and group_size == 32").iloc[0]
    assert row["reason"].startswith("model.layers.0.mlp.down_proj: in_features 96 / 2 = 48 is not")


def test_packed_linears_count_by_their_true_size():
    from pathlib import Path

    folder = Path(__file__).parents[1] / "data" / "autoawq_gemm_qwen3_g32_bf16"
    ckpt = open_checkpoint(folder)
    by_headers = tensor_parallel_fit(ckpt, (1, 2), (64, 32))
    by_config = tensor_parallel_fit(ckpt.config, (1, 2), (64, 32))
    assert by_headers["fits"].tolist() == by_config["fits"].tolist()
