import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import awqbench as ab
from awqbench.errors import AlignmentError, AlreadyQuantizedError, FormatError, ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.writer import CheckpointWriter
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.parallel.pad_channels import (
    count_zero_groups,
    pad_columns,
    pad_rows,
    place_channels,
)
from awqbench.inspect.parallel.padding import pad_checkpoint
from awqbench.inspect.parallel.padding_plan import padding_plan
from awqbench.inspect.parallel.plan import plan_tensor_parallel


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    out = tmp_path_factory.mktemp("padded") / "model"
    record = pad_checkpoint("tiny", out, tp_size=2, group_size=128)
    return open_checkpoint(out), record


def fits(source, tp_size=2, group_size=128):
    return plan_tensor_parallel(source, (tp_size,), (group_size,), "vllm")["fits"].item()


@given(width=st.integers(1, 300), added=st.integers(0, 300))
def test_channels_keep_their_order_and_spread_evenly(width, added):
    channels = place_channels(width, width + added)
    real = np.flatnonzero(channels.is_real)
    assert channels.source[real].tolist() == list(range(width))
    gaps = np.diff([*real, width + added])
    assert gaps.max() - gaps.min() <= 1
    assert channels.source[0] == 0
    assert (channels.source == np.cumsum(channels.is_real) - 1).all()


def test_width_cannot_shrink():
    with pytest.raises(ParameterError, match="cannot pad width 8 to 4"):
        place_channels(8, 4)


@pytest.mark.parametrize("group_size", [128, 64, 32])
def test_zero_groups_by_placement(group_size):
    import torch

    down, gate = torch.randn(16, 384), torch.randn(384, 128)
    counts = {}
    for placement in ("interleaved", "interleaved zeros", "appended"):
        channels = place_channels(384, 512, placement=placement)
        counts[placement] = (
            count_zero_groups(pad_columns(down, channels), group_size),
            count_zero_groups(pad_rows(gate, channels), group_size),
        )
    in_rows = 128 * (128 // group_size)
    assert counts == {
        "interleaved": (0, 0),
        "interleaved zeros": (0, in_rows),
        "appended": (16 * (128 // group_size), in_rows),
    }


def test_zero_groups_count_a_short_last_group():
    import torch

    weight = torch.ones(2, 10)
    weight[0, 8:] = 0
    assert count_zero_groups(weight, 8) == 1
    assert count_zero_groups(torch.zeros(2, 10), -1) == 2


def test_fused_halves_are_padded_apart():
    import torch

    fused = torch.arange(8.0).reshape(8, 1)
    rows = pad_rows(fused, place_channels(4, 6), n_parts=2).flatten().tolist()
    assert rows == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]


def test_the_padded_model_fits_and_computes_the_same(padded):
    ckpt, record = padded
    assert not fits("tiny")
    assert fits(ckpt)
    assert ckpt.config["intermediate_size"] == 1024
    assert record["widths"] == {"intermediate_size": [896, 1024]}
    assert record["n_mlps"] == 8
    assert 0 < record["max_difference"] < 1e-12 * record["max_output"]
    assert json.loads((ckpt.path / "pad_record.json").read_text()) == record
    tokens = ab.text_tokens("tiny", split="evaluation", n_samples=2, seq_len=64)
    ppl = [ab.perplexity(ab.load_model(source), tokens).ppl for source in ("tiny", ckpt)]
    assert ppl[0] == pytest.approx(ppl[1], rel=1e-5)


def test_only_mlps_change_and_no_group_is_zero(padded):
    import torch

    ckpt, record = padded
    tiny = open_checkpoint("tiny")
    assert list(ckpt.tensors.keys() - tiny.tensors.keys()) == []
    for name in tiny.tensors:
        before, after = tiny.read(name), ckpt.read(name)
        if ".mlp." in name:
            assert 1024 in after.shape and after.dtype == before.dtype
            for group_size in (128, 64, 32):
                assert count_zero_groups(after, group_size) == 0
        else:
            assert torch.equal(before, after)
    assert set(record["zero_groups"].values()) == {0}


def test_appended_zeros_make_zero_groups_and_nan_in_the_peers_formula(tmp_path):
    from awqbench.inspect.peers import peer_weight_magnitude

    record = pad_checkpoint(
        "tiny", tmp_path / "out", tp_size=2, group_size=128, placement="appended"
    )
    counts = record["zero_groups"]
    # 128 rows of 256 / 128 groups in gate and up of 8 layers; one group in each row of down.
    assert counts["gate_up after"] == 8 * 2 * 128 * 2
    assert counts["down after"] == 8 * 256
    down = open_checkpoint(tmp_path / "out").read("model.layers.0.mlp.down_proj.weight")
    magnitude = peer_weight_magnitude(down, 128, dtype="float32")
    assert int(magnitude.isnan().sum()) == 128


def test_quantized_folders_are_refused(tmp_path):
    from pathlib import Path

    folder = Path(__file__).parents[1] / "data" / "autoawq_gemm_qwen3_g32_bf16"
    with pytest.raises(AlreadyQuantizedError, match="already quantized"):
        pad_checkpoint(folder, tmp_path / "out", tp_size=2, group_size=128)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tp_size": 1}, ParameterError, "fits tp_size 1 and group_size 128 .* nothing to pad"),
        ({"tp_size": 8}, AlignmentError, "padding cannot help: num_attention_heads 4"),
        ({"tp_size": 4}, AlignmentError, "padding cannot help: .*o_proj: in_features 256 / 4 = 64"),
        ({"tp_size": 2, "placement": "middle"}, ParameterError, "placement 'middle'; choose"),
    ],
)
def test_what_cannot_be_done_is_said(settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        pad_checkpoint("tiny", tmp_path / "out", group_size=128, **settings)
    assert list(tmp_path.iterdir()) == []


def save_moe(kind, folder):
    import torch
    import transformers

    sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2)
    if kind == "qwen3_moe":
        more = dict(moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2)
        more |= dict(head_dim=16, mlp_only_layers=[0])
        config = transformers.Qwen3MoeConfig(**sizes | more)
    elif kind == "mixtral":
        config = transformers.MixtralConfig(**sizes | dict(num_local_experts=2))
    else:
        more = dict(num_key_value_heads=4, moe_intermediate_size=48, n_routed_experts=4)
        more |= dict(n_shared_experts=2, num_experts_per_tok=2, first_k_dense_replace=1)
        more |= dict(q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16)
        more |= dict(v_head_dim=16, topk_method="greedy", n_group=1, topk_group=1)
        config = transformers.DeepseekV2Config(**sizes | more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "values", "n_mlps"),
    [
        ("qwen3_moe", {"intermediate_size": 128, "moe_intermediate_size": 64}, 1 + 4),
        ("mixtral", {"intermediate_size": 128}, 2 * 2),
        ("deepseek_v2", {"intermediate_size": 128, "moe_intermediate_size": 64}, 1 + 4 + 1),
    ],
)
def test_experts_are_padded(kind, values, n_mlps, tmp_path):
    import torch

    source = save_moe(kind, tmp_path / "model")
    record = pad_checkpoint(source, tmp_path / "out", tp_size=2, group_size=32)
    assert record["config_values"] == values
    assert record["n_mlps"] == n_mlps
    assert fits(open_checkpoint(tmp_path / "out"), 2, 32)
    tokens = torch.arange(40).reshape(2, 20)
    logits = [ab.load_model(f)(tokens).logits.detach() for f in (source, tmp_path / "out")]
    assert torch.allclose(*logits, atol=1e-4 * float(logits[0].abs().max()))


@pytest.mark.parametrize("architecture", ["phi3", "opt", "llama", "phi", "gpt_neox"])
def test_fused_plain_and_biased_mlps(architecture, tmp_path):
    import torch
    from tiny_models import save_tiny_model

    source = save_tiny_model(architecture, tmp_path / "model")
    record = pad_checkpoint(source, tmp_path / "out", tp_size=4, group_size=16, engine="awq")
    (old, new) = next(iter(record["widths"].values()))
    assert (new > old) and new % 64 == 0
    tokens = torch.arange(40).reshape(2, 20)
    logits = [ab.load_model(f)(tokens).logits.detach() for f in (source, tmp_path / "out")]
    assert torch.allclose(*logits, atol=1e-5 * float(logits[0].abs().max()))


def first_qwen(folder, *, extra=()):
    """Write a folder in the layout of Qwen's first release, whose config doubles the width."""
    import torch

    config = dict(model_type="qwen", hidden_size=64, intermediate_size=192)
    config |= dict(num_attention_heads=4, num_hidden_layers=1, vocab_size=128)
    shapes = {"attn.c_attn": (192, 64), "attn.c_proj": (64, 64)}
    shapes |= {"mlp.w1": (96, 64), "mlp.w2": (96, 64), "mlp.c_proj": (64, 96)}
    torch.manual_seed(0)
    with CheckpointWriter(folder) as writer:
        for name, shape in shapes.items():
            writer.add(f"transformer.h.0.{name}.weight", torch.randn(shape))
        for name, shape in extra:
            writer.add(name, torch.randn(shape))
        writer.finish(config)
    return open_checkpoint(folder)


def test_first_qwen_keeps_its_doubled_width(tmp_path):
    ckpt = first_qwen(tmp_path / "model")
    record = pad_checkpoint(ckpt, tmp_path / "out", tp_size=2, group_size=32)
    out = open_checkpoint(tmp_path / "out")
    assert record["widths"] == {"intermediate_size": [96, 128]}
    assert out.config["intermediate_size"] == 256
    assert out.tensors["transformer.h.0.mlp.c_proj.weight"].shape == (64, 128)
    assert out.tensors["transformer.h.0.attn.c_proj.weight"].shape == (64, 64)


def test_a_vector_of_the_inner_width_is_refused(tmp_path):
    ckpt = first_qwen(tmp_path / "model", extra=[("transformer.h.0.mlp.norm.weight", (96,))])
    with pytest.raises(FormatError, match="mlp.norm.weight has the inner width 96"):
        pad_checkpoint(ckpt, tmp_path / "out", tp_size=2, group_size=32)


def write_vision_language(folder, vision):
    """Write a folder whose vision tower has linears of the same names; flat and nested keys."""
    import torch

    text = dict(model_type="qwen2", hidden_size=64, intermediate_size=96)
    text |= dict(num_attention_heads=4, num_hidden_layers=1, vocab_size=128)
    config = text | {"text_config": text, "vision_config": {"intermediate_size": 96}}
    torch.manual_seed(0)
    with CheckpointWriter(folder) as writer:
        for tower, width in (("visual.blocks", vision), ("model.language_model.layers", 96)):
            for role in ("gate_proj", "up_proj"):
                writer.add(f"{tower}.0.mlp.{role}.weight", torch.randn(width, 64))
            writer.add(f"{tower}.0.mlp.down_proj.weight", torch.randn(64, width))
        writer.finish(config)
    return open_checkpoint(folder)


@pytest.mark.parametrize("vision", [96, 160])
def test_a_vision_tower_is_left_alone(vision, tmp_path):
    import torch

    ckpt = write_vision_language(tmp_path / "model", vision)
    pad_checkpoint(ckpt, tmp_path / "out", tp_size=2, group_size=32)
    out = open_checkpoint(tmp_path / "out")
    widths = [out.config["intermediate_size"], out.config["text_config"]["intermediate_size"]]
    assert widths == [128, 128]
    assert out.config["vision_config"]["intermediate_size"] == 96
    assert out.tensors["model.language_model.layers.0.mlp.up_proj.weight"].shape == (128, 64)
    name = "visual.blocks.0.mlp.down_proj.weight"
    assert torch.equal(out.read(name), ckpt.read(name))


def test_missing_linears_are_an_error(tmp_path):
    ckpt = first_qwen(tmp_path / "model")
    more = {"num_hidden_layers": 2}
    (ckpt.path / "config.json").write_text(json.dumps(ckpt.config | more))
    with pytest.raises(FormatError, match=r"holds 1 of 2 linears transformer.h.\*.mlp.w2"):
        pad_checkpoint(ckpt.path, tmp_path / "out", tp_size=2, group_size=32)


@pytest.mark.parametrize(
    ("width", "tp_size", "group_size", "expected"),
    [
        (29568, 8, 128, 29696),
        (27392, 8, 128, 27648),
        (13696, 8, 128, 14336),
        (13824, 8, 128, 14336),
        (18944, 8, 128, 19456),
        (10944, 8, 128, 11264),
        (768, 8, 128, 1024),
        (29568, 4, 64, 29696),
        (10944, 1, 128, 11008),
        (10944, 1, 96, 10944),
    ],
)
def test_smallest_width(width, tp_size, group_size, expected):
    sizes = dict(hidden_size=3072 * 8, num_attention_heads=64, intermediate_size=width)
    plan = padding_plan(model_shapes(sizes), tp_size, group_size)
    assert plan.widths["intermediate_size"] == (width, expected)
    assert plan.fits


def test_no_width_lets_whole_rows_be_split():
    sizes = dict(hidden_size=1024, num_attention_heads=8, intermediate_size=1024)
    plan = padding_plan(model_shapes(sizes), 2, -1)
    assert not plan.fits and not plan.is_needed
    assert plan.describe().startswith("padding cannot help: model.layers.*.self_attn.o_proj")


def test_the_older_marlin_needs_wider_tiles():
    sizes = dict(hidden_size=8192, num_attention_heads=64, intermediate_size=29568)
    plan = padding_plan(model_shapes(sizes), 4, 32, engine="vllm-marlin")
    assert plan.widths["intermediate_size"] == (29568, 29696)
    assert not padding_plan(model_shapes(sizes), 4, 32).is_needed
