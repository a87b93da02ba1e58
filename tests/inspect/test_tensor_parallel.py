import json

import pytest

from awqbench.errors import FormatError, ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.parallel.engine_rules import ENGINES
from awqbench.inspect.parallel.known_configs import known_models_table
from awqbench.inspect.parallel.plan import (
    plan_tensor_parallel,
    read_config,
    tensor_parallel_fit,
    tensor_parallel_problems,
)

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


def known(hidden_size, width, heads, kv_heads, **more):
    return (
        dict(
            hidden_size=hidden_size,
            intermediate_size=width,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=4,
            vocab_size=152064,
        )
        | more
    )


FIRST_QWEN = {"model_type": "qwen"}
DEEPSEEK_V2_LITE = dict(
    model_type="deepseek_v2",
    moe_intermediate_size=1408,
    n_routed_experts=64,
    n_shared_experts=2,
    first_k_dense_replace=1,
    kv_lora_rank=512,
    q_lora_rank=None,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
QWEN3_30B_A3B = dict(
    model_type="qwen3_moe", head_dim=128, num_experts=128, moe_intermediate_size=768
)
ALL = (1, 2, 4, 8)
# What fits at group sizes 128, 64 and 32.
KNOWN = {
    "Qwen-72B": (known(8192, 49152, 64, 64, **FIRST_QWEN), ALL, ALL, ALL),
    "Qwen1.5-72B": (known(8192, 24576, 64, 64), ALL, ALL, ALL),
    "Qwen2-72B": (known(8192, 29568, 64, 8), (1,), (1, 2), (1, 2, 4)),
    "Qwen2-72B padded": (known(8192, 29696, 64, 8), ALL, ALL, ALL),
    "Qwen1.5-32B": (known(5120, 27392, 40, 8), (1, 2), (1, 2, 4), ALL),
    "Qwen2.5-32B": (known(5120, 27648, 40, 8), ALL, ALL, ALL),
    "Qwen-14B": (known(5120, 27392, 40, 40, **FIRST_QWEN), (1,), (1, 2), (1, 2, 4)),
    "Qwen1.5-14B": (known(5120, 13696, 40, 40), (1,), (1, 2), (1, 2, 4)),
    "Llama-2-13B": (known(5120, 13824, 40, 40), (1, 2, 4), ALL, ALL),
    "Qwen2.5-14B": (known(5120, 13824, 40, 8), (1, 2, 4), ALL, ALL),
    "Qwen2-7B": (known(3584, 18944, 28, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4)),
    "DeepSeek-V2-Lite": (known(2048, 10944, 16, 16, **DEEPSEEK_V2_LITE), (), (1,), (1, 2)),
    "Qwen3-30B-A3B": (known(2048, 6144, 32, 4, **QWEN3_30B_A3B), (1, 2), (1, 2, 4), ALL),
    "Mixtral-8x7B": (
        known(4096, 14336, 32, 8, model_type="mixtral", num_local_experts=8),
        *(ALL, ALL, ALL),
    ),
}


@pytest.mark.parametrize("engine", ["vllm", "awq", "exllama", "cpu"])
@pytest.mark.parametrize("name", KNOWN)
def test_known_models(name, engine):
    config, *expected = KNOWN[name]
    plan = plan_tensor_parallel(config, engine=engine)
    fits = plan[plan["fits"]].groupby("group_size")["tp_size"].apply(tuple)
    assert [fits.get(size, ()) for size in (128, 64, 32)] == expected


def first_row(config, tp_size, group_size, engine):
    return plan_tensor_parallel(config, (tp_size,), (group_size,), engine).iloc[0]


ALIGNED = (
    "The input size is not aligned with the quantized weight shape. This can be caused by too "
    "large tensor parallel size."
)
REDUCE = "Consider reducing tensor_parallel_size or running with --quantization gptq."


@pytest.mark.parametrize(
    ("engine", "rule", "text"),
    [
        ("vllm", "groups", ALIGNED),
        ("awq", "groups", ALIGNED),
        (
            "vllm-marlin",
            "tiles",
            "Weight input_size_per_partition = 7392 is not divisible by min_thread_k = 128. "
            + REDUCE,
        ),
        (
            "exllama",
            "groups",
            "Weight input_size_per_partition=7392 for layer 'model.layers.*.mlp.down_proj' is not "
            "divisible by group_size=128. This happens when tensor_parallel_size splits the layer "
            "input into shards that are not a whole number of quant groups. Consider reducing "
            "tensor_parallel_size.",
        ),
        ("cpu", "groups", "(no message: the engine does not check this, and would read the wrong"),
    ],
)
def test_each_engine_has_its_own_words(engine, rule, text):
    row = first_row(QWEN2_72B, 4, 128, engine)
    assert (row["layer"], row["rule"], row["number"], row["multiple_of"]) == (
        "model.layers.*.mlp.down_proj",
        rule,
        7392,
        128,
    )
    assert row["error_text"].startswith(text)


@pytest.mark.parametrize(
    ("change", "tp_size", "rule", "text"),
    [
        (
            {},
            3,
            "heads",
            "Total number of attention heads (64) must be divisible by tensor parallel size (3).",
        ),
        (
            {"num_attention_heads": 48, "vocab_size": 100},
            3,
            "heads",
            "AssertionError (num_key_value_heads 8, tensor parallel size 3)",
        ),
        (
            {"num_attention_heads": 48, "num_key_value_heads": 3, "vocab_size": 100},
            3,
            "vocabulary",
            "AssertionError: 128 is not divisible by 3",
        ),
    ],
)
def test_rules_of_the_whole_model(change, tp_size, rule, text):
    row = first_row(QWEN2_72B | change, tp_size, 128, "vllm")
    assert (row["layer"], row["rule"], row["error_text"]) == ("config.json", rule, text)
    assert row["fix"].startswith("padding cannot help: choose a tp_size that divides")


def test_marlin_and_cpu_tiles_count_merged_outputs():
    # Gate and up have 36 outputs each on a rank: 72 together, a whole number of words, but
    # a slice of each is cut within a word, which no engine checks.
    config = TINY | {"intermediate_size": 288, "num_attention_heads": 8}
    rows = plan_tensor_parallel(config, (8,), (32,), "awq")
    assert rows["rule"].item() == "words"
    assert "gate_proj: out_features 288 / 8 = 36" in tensor_parallel_problems(config, 8, 32)[0]
    assert rows["error_text"].item().startswith("(no message")
    cpu = tensor_parallel_problems(config, 8, 32, engine="cpu")
    assert any("gate_up_proj has 72 outputs on a rank, not a multiple of 32" in b for b in cpu)


def test_fixes_are_ways_that_work():
    fix = first_row(QWEN2_72B, 4, 128, "vllm")["fix"]
    assert fix == (
        "pad intermediate_size 29568 to 29696 (awqbench pad MODEL OUT --tp 4 --group-size 128); "
        "or quantize with group_size 32"
    )
    experts = first_row(KNOWN["Qwen3-30B-A3B"][0], 8, 128, "vllm")
    assert experts["error_text"] == "size_k must divisible by BLOCK_SIZE_K"
    assert experts["fix"].startswith("pad moe_intermediate_size 768 to 1024")
    assert experts["fix"].endswith("keep experts whole (--enable-expert-parallel)")


def test_whole_rows_fit_one_rank_of_every_engine_but_exllama():
    plan = plan_tensor_parallel(TINY, (1, 2), (-1,))
    assert set(plan[plan["fits"]]["engine"]) == set(ENGINES) - {"exllama"}
    assert set(plan[plan["fits"]]["tp_size"]) == {1}


def test_the_embedded_model_breaks_at_two_ranks():
    row = first_row(open_checkpoint("tiny"), 2, 128, "vllm")
    assert (row["layer"], row["number"]) == ("model.layers.0.mlp.down_proj", 448)
    assert row["fix"].startswith("pad intermediate_size 896 to 1024 (awqbench pad MODEL OUT")


def test_a_config_alone_is_enough(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_72B))
    for source in (tmp_path, tmp_path / "config.json"):
        assert plan_tensor_parallel(source, (4,), (128,))["fits"].sum() == 0
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FormatError, match="not a JSON object"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0,), (128,)), "tp_size 0, group_size 128: need 1 or more"),
        (((1,), (0,)), "group_size may be -1"),
        (((1,), (128,), "tgi"), "no engine 'tgi'; choose one of vllm, vllm-marlin"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ParameterError, match=message):
        plan_tensor_parallel(TINY, *arguments)


def test_the_table_of_known_models_says_the_same_and_what_to_pad_to():
    table = known_models_table()
    for name, (_, *expected) in KNOWN.items():
        if name in table.index:
            row = table.loc[name, ["g128", "g64", "g32"]].tolist()
            assert row == [", ".join(map(str, sizes)) or "none" for sizes in expected]
    assert table.loc["Qwen-72B", ["in_config", "width"]].tolist() == [49152, 24576]
    padded = table["pad_to"][table["pad_to"] != "-"].to_dict()
    assert padded == {
        "Qwen2-72B": "29696",
        "Qwen1.5-32B": "27648",
        "Qwen-14B": "14336",
        "Llama-2-13B": "14336",
        "Qwen2.5-14B": "14336",
        "Qwen2-7B": "19456",
        "DeepSeek-V2-Lite": "11264",
        "Qwen3-30B-A3B": "1024",
    }
