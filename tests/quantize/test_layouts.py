"""`quantize` writes every layout, and refuses what a layout cannot hold before it begins."""

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import AlignmentError, FormatError, ParameterError

TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (4, 32))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("model") / "m", dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(model, tmp_path_factory):
    return ab.calibrate(model, TOKENS, tmp_path_factory.mktemp("stats") / "s")


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("awq-gemv", {}),
        ("gptq", {"zero_point": False}),
        ("gptq-v2", {"bits": 3}),
        ("gptq-v2", {"bits": 8, "group_size": -1}),
        ("compressed-tensors", {"bits": 3, "scale_dtype": "bfloat16"}),
        ("compressed-tensors", {"bits": 5, "zero_point": False}),
    ],
    ids=str,
)
def test_a_layout_holds_what_was_asked_for(model, stats, tmp_path, layout, changes):
    changes = {"group_size": 32, "modules_to_not_convert": ("k_proj",)} | changes
    record = ab.quantize(model, tmp_path / "q", stats=stats, layout=layout, **changes)
    ckpt = ab.open_checkpoint(tmp_path / "q")
    assert ckpt.quantization.layout == layout == record["settings"]["layout"]
    assert len(ckpt.quantized_linears()) == len(record["linears"]) == 12
    packed = ckpt.linear("model.layers.0.mlp.down_proj")
    assert packed.bits == changes.get("bits", 4)
    assert packed.group_size == (96 if changes["group_size"] == -1 else 32)
    assert packed.zero_point == changes.get("zero_point", True)
    assert packed.scale_dtype == changes.get("scale_dtype", "float16")
    assert torch.is_tensor(ckpt.linear("model.layers.0.self_attn.k_proj"))
    with torch.no_grad():
        tokens = torch.from_numpy(TOKENS[:1])
        full = ab.load_model(model)(tokens).logits
        close = ab.load_quantized(ckpt, dtype="float32")(tokens).logits
    assert (close - full).std() < 0.5 * full.std()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 3}, "bits=3.*compressed-tensors"),
        ({"layout": "gptq"}, "choose layout='gptq-v2', or zero_point=False"),
        ({"layout": "gptq-v2", "bits": 5}, "bits=5: the gptq-v2 layout holds 2, 3, 4, 8"),
        ({"layout": "gptq-v2", "scale_dtype": "bfloat16"}, "stores float16"),
        ({"layout": "chatglm"}, "quantize_chatglm"),
    ],
)
def test_what_a_layout_cannot_hold(model, stats, tmp_path, changes, words):
    with pytest.raises(FormatError, match=words):
        ab.quantize(model, tmp_path / "q", stats=stats, **{"group_size": 32} | changes)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_layout(model, stats, tmp_path):
    with pytest.raises(ParameterError, match="'awq' is not known; layouts that are written"):
        ab.quantize(model, tmp_path / "q", stats=stats, group_size=32, layout="awq")


def test_sizes_that_a_layout_cannot_hold(tmp_path):
    from awqbench.formats.config.limits import check_size

    check_size("compressed-tensors", 17, 33, name="proj")
    with pytest.raises(AlignmentError, match=r"proj: out_features is 20.*remainder 20.*pad by 12"):
        check_size("gptq-v2", 20, 64, name="proj")
    with pytest.raises(AlignmentError, match=r"proj: in_features is 40.*remainder 8.*pad by 24"):
        check_size("awq-gemv", 64, 40, name="proj")
    with pytest.raises(AlignmentError, match="out_features is 20"):
        check_size("awq-gemm", 20, 64, name="proj")
