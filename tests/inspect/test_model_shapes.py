import pytest

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.parallel.match_linears import find_linears, with_names_of
from awqbench.inspect.parallel.model_shapes import language_config, model_shapes
from awqbench.inspect.parallel.shape_types import ROW

GQA = dict(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    vocab_size=128,
)
DEEPSEEK_V2_LITE = dict(
    model_type="deepseek_v2",
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    num_key_value_heads=16,
    n_routed_experts=64,
    n_shared_experts=2,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    vocab_size=102400,
)


def table(config):
    """Name below the layers -> (N, K, split, count)."""
    return {
        linear.name.partition("*.")[2]: (
            linear.out_features,
            linear.in_features,
            linear.split,
            linear.count,
        )
        for linear in model_shapes(config).linears
    }


def test_grouped_query_attention_and_a_gated_mlp():
    assert table(GQA | {"head_dim": 32}) == {
        "self_attn.q_proj": (128, 64, "column", 2),
        "self_attn.k_proj": (64, 64, "column", 2),
        "self_attn.v_proj": (64, 64, "column", 2),
        "self_attn.o_proj": (64, 128, "row", 2),
        "mlp.gate_proj": (96, 64, "column", 2),
        "mlp.up_proj": (96, 64, "column", 2),
        "mlp.down_proj": (64, 96, "row", 2),
    }


def test_first_qwen_halves_its_width():
    config = GQA | {"model_type": "qwen", "intermediate_size": 192, "num_attention_heads": 4}
    assert table(config) == {
        "attn.c_attn": (192, 64, "column", 2),
        "attn.c_proj": (64, 64, "row", 2),
        "mlp.w2": (96, 64, "column", 2),
        "mlp.w1": (96, 64, "column", 2),
        "mlp.c_proj": (64, 96, "row", 2),
    }


def test_chatglm_fuses_query_key_value_and_gate_up():
    config = dict(
        model_type="chatglm",
        hidden_size=4096,
        ffn_hidden_size=13696,
        num_attention_heads=32,
        kv_channels=128,
        multi_query_attention=True,
        multi_query_group_num=2,
        num_layers=28,
        padded_vocab_size=65024,
    )
    shapes = model_shapes(config)
    assert table(config)["self_attention.query_key_value"] == (4608, 4096, "column", 28)
    assert table(config)["mlp.dense_h_to_4h"] == (27392, 4096, "column", 28)
    assert [part.out_features for part in shapes.linears[0].parts] == [4096, 256, 256]
    assert (shapes.num_key_value_heads, shapes.vocab_size) == (2, 65024)


def test_deepseek_has_latent_attention_dense_layers_and_shared_experts():
    shapes = table(DEEPSEEK_V2_LITE)
    assert shapes == {
        "self_attn.q_proj": (3072, 2048, "column", 27),
        "self_attn.kv_a_proj_with_mqa": (576, 2048, "replicated", 27),
        "self_attn.kv_b_proj": (4096, 512, "column", 27),
        "self_attn.o_proj": (2048, 2048, "row", 27),
        "mlp.gate_proj": (10944, 2048, "column", 1),
        "mlp.up_proj": (10944, 2048, "column", 1),
        "mlp.down_proj": (2048, 10944, "row", 1),
        "mlp.experts.*.gate_proj": (1408, 2048, "column", 26 * 64),
        "mlp.experts.*.up_proj": (1408, 2048, "column", 26 * 64),
        "mlp.experts.*.down_proj": (2048, 1408, "row", 26 * 64),
        "mlp.shared_experts.gate_proj": (2816, 2048, "column", 26),
        "mlp.shared_experts.up_proj": (2816, 2048, "column", 26),
        "mlp.shared_experts.down_proj": (2048, 2816, "row", 26),
    }
    low_rank = table(DEEPSEEK_V2_LITE | {"q_lora_rank": 1536})
    assert low_rank["self_attn.q_a_proj"] == (1536, 2048, "replicated", 27)
    assert low_rank["self_attn.q_b_proj"] == (3072, 1536, "column", 27)


def test_mixtral_and_qwen_experts():
    mixtral = table(GQA | {"model_type": "mixtral", "num_local_experts": 8})
    assert mixtral["block_sparse_moe.experts.*.w2"] == (64, 96, "row", 16)
    assert "mlp.down_proj" not in mixtral
    qwen = GQA | dict(model_type="qwen3_moe", num_experts=4, moe_intermediate_size=48)
    assert table(qwen)["mlp.experts.*.down_proj"] == (64, 48, "row", 8)
    assert "mlp.down_proj" not in table(qwen)
    mixed = table(qwen | {"mlp_only_layers": [0]})
    assert mixed["mlp.down_proj"] == (64, 96, "row", 1)
    assert mixed["mlp.experts.*.down_proj"] == (64, 48, "row", 4)
    shared = {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 192}
    assert table(qwen | shared)["mlp.shared_expert.down_proj"] == (64, 192, "row", 2)


@pytest.mark.parametrize(
    "path", [("text_config",), ("llm_config",), ("thinker_config", "text_config")]
)
def test_the_language_model_is_found_in_a_multimodal_config(path):
    config = GQA | {"model_type": "qwen2"}
    for key in reversed(path):
        config = {key: config}
    config |= {"vision_config": {"hidden_size": 1280, "intermediate_size": 3420}}
    assert language_config(config)[1] == path
    assert model_shapes(config).widths["intermediate_size"].value == 96


def test_missing_keys_are_named_all_at_once():
    with pytest.raises(FormatError, match="'fancy'.*no num_attention_heads, intermediate_size"):
        model_shapes({"model_type": "fancy", "hidden_size": 64})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"model_type": "jamba", "mamba_d_state": 16}, "mamba_d_state"),
        ({"model_type": "novel_moe", "num_experts": 8}, "8 experts.*does not know"),
        ({"intermediate_size": [96, 128]}, "intermediate_size is .*not a positive integer"),
    ],
)
def test_what_cannot_be_told_is_refused(extra, message):
    with pytest.raises(FormatError, match=message):
        model_shapes(GQA | extra)


ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "glm", "glm4", "gemma", "gemma2"]
ARCHITECTURES += ["gemma3", "olmo2", "cohere", "gpt_neox", "falcon", "phi", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_of_every_family_have_the_shapes_of_its_config(architecture, tmp_path):
    from tiny_models import save_tiny_model

    ckpt = open_checkpoint(save_tiny_model(architecture, tmp_path / "model"))
    shapes = model_shapes(ckpt.config)
    found = find_linears(shapes, ckpt)
    assert len(found) == sum(linear.count for linear in shapes.linears)
    linears = {
        name.removesuffix(".weight")
        for name, info in ckpt.tensors.items()
        if ".layers." in name or ".h." in name
        if name.endswith(".weight") and len(info.shape) == 2
    }
    assert set(found) == linears
    assert {linear.role for linear in found.values() if linear.split == ROW} >= {
        linear.role for linear in shapes.linears if linear.split == ROW
    }


def test_weights_that_disagree_with_the_config_are_an_error(tmp_path):
    from tiny_models import save_tiny_model

    ckpt = open_checkpoint(save_tiny_model("qwen3", tmp_path / "model"))
    shapes = model_shapes(ckpt.config | {"intermediate_size": 128})
    with pytest.raises(FormatError, match=r"proj is \((96, 64|64, 96)\), and config.json says"):
        with_names_of(shapes, ckpt)
