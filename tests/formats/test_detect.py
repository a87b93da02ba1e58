"""What configurations of today and of old say, told from the dictionaries that tools write."""

import json
from pathlib import Path

import pytest

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.config.detect import detect_quantization
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.headers import TensorInfo
from awqbench.formats.recognise import recognise

NOWHERE = Path("/nowhere")


def info(name, dtype="int32", shape=(8, 8)):
    return TensorInfo(name, shape, dtype, NOWHERE, 0, 0)


PACKED = {"p.qweight": info("p.qweight")}


def detect(section, tensors=PACKED, **config):
    return detect_quantization(config | {"quantization_config": section}, tensors, NOWHERE)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        # AutoAWQ 0.2.9
        (
            {"bits": 4, "group_size": 64, "quant_method": "awq", "version": "gemv_fast"},
            ("awq-gemv-fast", 4, 64, True),
        ),
        (
            {"bits": 4, "group_size": 64, "quant_method": "awq", "version": "marlin"},
            ("awq-marlin", 4, 64, False),
        ),
        (
            {"bits": 4, "group_size": 64, "quant_method": "awq", "version": "exllama"},
            ("awq-gemm", 4, 64, True),
        ),
        # llm-awq, before quant_method
        (
            {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"},
            ("awq-gemm", 4, 128, True),
        ),
        # transformers 5 writes AwqConfig without checkpoint_format
        (
            {"quant_method": "awq", "bits": 4, "group_size": 32, "format": "gemm", "sym": True},
            ("awq-gemm", 4, 32, True),
        ),
        # AutoGPTQ's quantize_config.json
        (
            {"bits": 4, "group_size": -1, "damp_percent": 0.01, "desc_act": True, "sym": True},
            ("gptq", 4, -1, False),
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True},
            ("gptq", 8, 128, False),
        ),
        (
            {
                "quant_method": "gptq",
                "bits": 3,
                "group_size": 32,
                "checkpoint_format": "gptq_v2",
                "sym": False,
            },
            ("gptq-v2", 3, 32, True),
        ),
        # AutoRound's own method, both packings, and its default
        (
            {
                "quant_method": "auto-round",
                "bits": 4,
                "group_size": 64,
                "sym": False,
                "packing_format": "auto_round:auto_awq",
            },
            ("awq-gemm", 4, 64, True),
        ),
        ({"quant_method": "auto-round", "bits": 2, "group_size": 64}, ("gptq", 2, 64, False)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_spellings(section, expected):
    found = detect(section)
    assert (found.layout, found.bits, found.group_size, found.zero_point) == expected


@pytest.mark.parametrize(
    ("section", "variant", "words"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            "fp4",
            "bitsandbytes",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "nf4",
            "bitsandbytes",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "", "float8.*DeepSeek"),
        ({"quant_method": "mxfp4"}, "", "gpt-oss"),
        ({"quant_method": "hqq"}, "", "HQQ"),
        ({"quant_method": "torchao", "quant_type": {}}, "", "torchao"),
        ({"quant_method": "modelopt"}, "", "ModelOpt"),
        ({"quant_method": "foo"}, "", "random weights: do not trust"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"},
            "bitblas",
            "GPTQModel",
        ),
        ({"quant_method": "gptq", "bits": 6}, "gptq_p", "gptq_p"),
        ({"quant_method": "awq", "bits": 4, "version": "new"}, "", "'new'"),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "mx_fp", "auto-round"),
        (
            {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {}},
            "marlin-24",
            "2:4",
        ),
    ],
    ids=lambda value: value.get("quant_method") if isinstance(value, dict) else None,
)
def test_methods_that_are_only_recognised(section, variant, words):
    found = detect(section)
    assert (found.layout, found.variant) == (None, variant)
    assert found.advice.endswith(".")
    with pytest.raises(FormatError, match=words):
        found.require_readable()


@pytest.mark.parametrize(
    ("name", "dtype", "method"),
    [
        ("p.weight_scale_inv", "float32", "fp8"),
        ("p.down_proj_blocks", "uint8", "mxfp4"),
        ("p.W_q", "uint8", "hqq"),
        ("p.SCB", "float32", "bitsandbytes"),
        ("p.weight.quant_state.bitsandbytes__nf4", "uint8", "bitsandbytes"),
        ("p.weight", "float8_e4m3fn", "fp8"),
    ],
)
def test_tensors_tell_where_the_configuration_is_silent(name, dtype, method):
    found = detect_quantization({}, {name: info(name, dtype)}, NOWHERE)
    assert found.method == method and found.layout is None


def test_dense_folders_and_unlabelled_ones():
    dense = {"p.weight": info("p.weight", "bfloat16")}
    assert detect_quantization({}, dense, NOWHERE) is None
    with pytest.raises(FormatError, match="no quantization_config: bits and layout are unknown"):
        detect_quantization({}, PACKED, NOWHERE)
    # ChatGLM's own folders of full precision say so, and are quantized when they are loaded.
    assert detect_quantization({"quantization_bit": 4}, dense, NOWHERE) is None
    assert detect_quantization({"quantization_bit": 0}, dense, NOWHERE) is None


def test_negative_rules_come_first_whatever_their_order():
    found = detect(
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "dynamic": {
                r"+:.*\.mlp\..*": {"bits": 8, "group_size": 32},
                r".*\.self_attn\..*": {"sym": False},
                r"-:.*\.1\.mlp\.up_proj": {},
            },
        }
    )
    assert found.scheme("model.layers.0.mlp.up_proj") == Scheme(8, 32, False)
    assert found.scheme("model.layers.0.self_attn.q_proj") == Scheme(4, 128, True)
    assert found.scheme("model.layers.0.other") == Scheme(4, 128, False)
    with pytest.raises(FormatError, match="has packed weights, and config.json says"):
        found.scheme("model.layers.1.mlp.up_proj")


def test_groups_of_compressed_tensors_by_name_before_class():
    def group(bits, targets, **weights):
        return {
            "format": "pack-quantized",
            "targets": targets,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 64,
            }
            | weights,
        }

    found = detect(
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "a": group(4, ["Linear"]),
                "b": group(8, ["re:.*mlp.*"], strategy="channel", group_size=None),
                "c": group(3, ["model.layers.0.mlp.up_proj"], symmetric=False),
            },
        }
    )
    assert found.scheme("model.layers.0.self_attn.q_proj") == Scheme(4, 64, False)
    assert found.scheme("model.layers.1.mlp.up_proj") == Scheme(8, -1, False)
    assert found.modules_to_not_convert == ("lm_head",)


def test_settings_of_single_modules_of_autoround():
    found = detect(
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "extra_config": {
                "model.layers.0.mlp.up_proj": {"bits": 8},
                "model.layers.0.mlp.down_proj": {"bits": 16},
            },
        }
    )
    assert found.scheme("model.layers.0.mlp.up_proj") == Scheme(8, 128, False)
    assert found.scheme("model.layers.10.mlp.up_proj") == Scheme(4, 128, False)


@pytest.mark.parametrize("file", ["quant_config.json", "quantize_config.json"])
def test_old_files_beside_the_configuration(tmp_path, file):
    (tmp_path / file).write_text(json.dumps({"w_bit": 4, "q_group_size": 64, "version": "GEMM"}))
    found = detect_quantization({}, PACKED, tmp_path)
    assert (found.layout, found.group_size) == ("awq-gemm", 64)


def test_a_section_inside_the_text_model():
    section = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
    found = detect_quantization({"text_config": {"quantization_config": section}}, PACKED, NOWHERE)
    assert found.layout == "awq-gemm"


def test_files_of_other_programs(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\3\0\0\0")
    for source in (gguf, tmp_path):
        assert recognise(source).method == "gguf"
        with pytest.raises(FormatError, match="llama.cpp"):
            open_checkpoint(source)
    hqq = tmp_path / "hqq"
    hqq.mkdir()
    (hqq / "qmodel.pt").touch()
    assert recognise(hqq).method == "hqq"


def test_patterns_of_an_attacker_end(tmp_path):
    rules = {f"(a|aa)+{i}$": {"bits": 4} for i in range(60)}
    found = detect({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": rules})
    with pytest.raises(FormatError, match="takes too long"):
        found.scheme("a" * 60 + "!")
