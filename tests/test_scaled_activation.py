"""AWQ's divisor of an activation that is not gated is applied, wherever the model keeps it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import FormatError
from awqbench.formats.layouts.awq import quantization_config, write_linear

# Architecture: the linear after the activation, and the activation in a file of AutoAWQ.
MODELS = {
    "falcon": ("transformer.h.{}.mlp.dense_4h_to_h", "transformer.h.{}.mlp.act"),
    "gpt_neox": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "gpt_neox.layers.{}.mlp.act"),
}


def scaled_folder(folder, architecture, *, drop=False):
    """Quantize the linear after each activation with its columns scaled, and store 1 / scales."""
    linear, activation = MODELS[architecture]
    save_tiny_model(architecture, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        name = linear.format(i)
        weight = tensors.pop(f"{name}.weight")
        # Powers of two: scaling and rounding then commute, so the logits stay the same.
        scales = 2.0 ** torch.randint(-2, 3, (weight.shape[1],), generator=generator)
        packed = ab.quantize_weight(weight * scales, 4, 1, scale_dtype="float16", name=name)
        tensors |= {f"{name}.{part}": t for part, t in write_linear(packed).items()}
        if not drop:
            tensors[f"{activation.format(i)}.scales"] = scales
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    section = quantization_config(bits=4, group_size=1, modules_to_not_convert=None)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return folder


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("dequantize", [False, True])
def test_the_model_computes_what_it_did(tmp_path, architecture, dequantize):
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    plain = save_tiny_model(architecture, tmp_path / "plain")
    with torch.no_grad():
        expected = ab.load_model(plain)(tokens).logits
        folder = scaled_folder(tmp_path / "scaled", architecture)
        scaled = ab.load_quantized(folder, dtype="float32", dequantize=dequantize)(tokens).logits
        folder = scaled_folder(tmp_path / "dropped", architecture, drop=True)
        dropped = ab.load_quantized(folder, dtype="float32")(tokens).logits
    # Groups of one: a weight is off by at most the rounding of its float16 scale.
    assert (scaled - expected).abs().max() < 5e-3 * expected.std()
    assert (dropped - expected).abs().max() > 0.1 * expected.std()


def test_scales_that_belong_to_no_activation_are_left_over(tmp_path):
    folder = scaled_folder(tmp_path / "m", "gpt_neox")
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.act.scales"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"no place.*attention\.act\.scales"):
        ab.load_quantized(folder)
