"""Predicted tensors against real ones: headers of folders, writers of layouts, saved models."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors import safe_open

import awqbench as ab
from awqbench.errors import AlreadyQuantizedError, FormatError, ParameterError
from awqbench.formats.layouts.table import write_linear
from awqbench.inspect.parallel.known_configs import KNOWN_CONFIGS
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.placement.dense_sizes import dense_tensors
from awqbench.inspect.placement.kv_cache import kv_cache_bytes, kv_layers
from awqbench.inspect.placement.module_bytes import (
    block_of,
    bytes_by_block,
    module_bytes,
    predicted_model,
    stored_model,
)
from awqbench.inspect.placement.packed_sizes import ITEM_BYTES, PackedForm, packed_tensors
from awqbench.inspect.sizes import packed_bytes
from awqbench.packed import PackedWeight
from awqbench.quantize.settings import Settings

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared" / "conformance" / "model"
FOLDERS = sorted(
    path.parent
    for folder in (DATA / "conformance" / "model", DATA, SHARED)
    if folder.is_dir()
    for path in folder.glob("*/config.json")
)
# Types whose saved config says what the tensors are; the others are refused by name.
REFUSED = ["gpt_neox", "falcon", "opt", "phi"]
PREDICTED = [name for name in tiny_models.CONFIGS if name not in REFUSED]


def shapes_of(tensors):
    return {name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_tensor_of_a_quantized_folder_is_predicted_from_its_config(folder):
    ckpt = ab.open_checkpoint(folder)
    predicted = predicted_model(ckpt.config)
    assert shapes_of(predicted.tensors) == shapes_of(ckpt.tensors)
    assert predicted.nbytes == stored_model(ckpt).nbytes == ckpt.nbytes


@pytest.mark.parametrize("architecture", PREDICTED)
def test_every_tensor_of_a_dense_model_is_predicted_from_its_config(architecture, tmp_path):
    ckpt = ab.open_checkpoint(tiny_models.save_tiny_model(architecture, tmp_path / "m"))
    assert shapes_of(dense_tensors(ckpt.config)) == shapes_of(ckpt.tensors)


@pytest.mark.parametrize("architecture", REFUSED)
def test_types_whose_tensors_do_not_follow_from_the_config_are_refused(architecture, tmp_path):
    ckpt = ab.open_checkpoint(tiny_models.save_tiny_model(architecture, tmp_path / "m"))
    with pytest.raises(FormatError, match="give a folder with weights"):
        predicted_model(ckpt.config)
    # Headers still tell: half of the dense bytes are fewer than 8 of 16 bits need.
    quantized = predicted_model(ckpt, Settings(bits=8, group_size=32))
    assert quantized.nbytes < stored_model(ckpt).nbytes / 2


SETTINGS = [
    {},
    {"group_size": 32, "layout": "gptq-v2", "bits": 8},
    {"group_size": 64, "layout": "compressed-tensors", "zero_point": False},
]


@pytest.fixture(scope="module")
def tiny_stats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stats")
    tokens = ab.text_tokens("tiny", n_samples=2, seq_len=64)
    return ab.calibrate("tiny", tokens, folder / "stats")


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: changes.get("layout", "awq"))
def test_the_embedded_model_is_predicted_before_it_is_quantized(changes, tiny_stats, tmp_path):
    settings = Settings(scales="none", clip=False, **changes)
    ab.quantize("tiny", tmp_path / "q", stats=tiny_stats, settings=settings)
    real = ab.open_checkpoint(tmp_path / "q")
    for source in ("tiny", ab.open_checkpoint("tiny").config):
        predicted = predicted_model(source, settings)
        assert shapes_of(predicted.tensors) == shapes_of(real.tensors)
        assert predicted.nbytes == real.nbytes


def random_packed(out_features, in_features, form):
    rng = np.random.default_rng(0)
    group_size = in_features if form.group_size == -1 else form.group_size
    shape = (out_features, -(-in_features // group_size))
    middle = 2 ** (form.bits - 1)
    zeros = rng.integers(1, 2**form.bits, shape) if form.zero_point else np.full(shape, middle)
    return PackedWeight(
        codes=rng.integers(0, 2**form.bits, (out_features, in_features)).astype(np.uint8),
        scales=np.ones(shape, np.float32),
        zeros=zeros.astype(np.uint8),
        bits=form.bits,
        group_size=group_size,
        zero_point=form.zero_point,
        scale_dtype=form.scale_dtype,
    )


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (PackedForm("awq-gemm", 4, 64), (40, 192)),
        (PackedForm("awq-gemv", 4, 32), (96, 96)),
        (PackedForm("awq-gemv", 4, 64), (64, 1280)),
        (PackedForm("awq-gemv", 4, 128), (64, 2048)),
        (PackedForm("gptq-v2", 3, 64), (32, 128)),
        (PackedForm("gptq-v2", 8, 128), (96, 256)),
        (PackedForm("gptq-v2", 4, -1), (32, 160)),
        (PackedForm("gptq", 4, 64, False), (32, 224)),
        (PackedForm("compressed-tensors", 4, -1, True, "bfloat16"), (24, 100)),
        (PackedForm("compressed-tensors", 3, 32, False), (40, 96)),
        (PackedForm("chatglm", 4, -1, False), (30, 96)),
        (PackedForm("chatglm", 8, -1, False), (17, 130)),
    ],
    ids=lambda value: "-".join(map(str, value[:3])),
)
def test_sizes_are_those_that_the_writer_writes(form, shape):
    written = write_linear(form.layout, random_packed(*shape, form))
    predicted = packed_tensors(*shape, form)
    assert shapes_of(predicted) == shapes_of(written)


@pytest.mark.parametrize(
    ("file", "form", "shape"),
    [
        ("awq_variants/gemv_k96_n96_g32", PackedForm("awq-gemv", 4, 32), (96, 96)),
        ("awq_variants/gemv_fast_k256_n64_g64", PackedForm("awq-gemv-fast", 4, 64), (64, 256)),
        ("awq_variants/marlin_k256_n64_g64", PackedForm("awq-marlin", 4, 64), (64, 256)),
        (
            "compressed_tensors/w3_k128_n64_g32_asym",
            PackedForm("compressed-tensors", 3, 32),
            (64, 128),
        ),
        ("gptq/w4_k224_n64_g64_asym", PackedForm("gptq-v2", 4, 64), (64, 224)),
    ],
)
def test_sizes_are_those_that_the_tools_wrote(file, form, shape):
    renamed = {"qzeros": "qzeros_v2"} if file.startswith("gptq") else {}
    with safe_open(DATA / f"{file}.safetensors", "np") as golden:
        for part, size in packed_tensors(*shape, form).items():
            found = golden.get_slice(renamed.get(part, part))
            assert tuple(found.get_shape()) == size.shape, part
            assert found.get_dtype().lower().lstrip("if") == str(8 * ITEM_BYTES[size.dtype])


@pytest.mark.parametrize("group_size", [-1, 32, 128])
def test_sweeps_count_the_same_bytes(group_size):
    parts = packed_tensors(96, 256, PackedForm("awq-gemm", 3, group_size))
    swept = packed_bytes(96, 256, bits=3, group_size=group_size)
    assert sum(size.nbytes for size in parts.values()) == swept


def test_a_row_that_is_no_whole_bytes_is_refused_with_the_linear():
    with pytest.raises(ParameterError, match="mlp.up: the chatglm layout .* not 33 codes of 4"):
        packed_tensors(8, 33, PackedForm("chatglm", 4, -1), name="mlp.up")


def test_settings_cannot_quantize_a_quantized_folder_again():
    with pytest.raises(AlreadyQuantizedError):
        predicted_model(DATA / "autoawq_gemm_qwen3_g32_bf16", Settings())


def test_modules_are_listed_with_their_block_and_sum_to_the_file():
    ckpt = ab.open_checkpoint(DATA / "autoawq_gemm_qwen3_g32_bf16")
    table = module_bytes(ckpt)
    assert table["weight_bytes"].sum() == ckpt.nbytes
    up = table.set_index("module").loc["model.layers.1.mlp.up_proj"]
    assert up["is_packed"] and up["n_tensors"] == 3 and up["block"] == "model.layers.1"
    # 128 x 256 codes of half a byte, 4 groups of 256 zero points and float16 scales.
    assert up["weight_bytes"] == 128 * 256 // 2 + 4 * 256 // 2 + 4 * 256 * 2
    by_block = table.groupby("block")["weight_bytes"].sum().to_dict()
    assert by_block == bytes_by_block(stored_model(ckpt))


@pytest.mark.parametrize(
    ("tensor", "block"),
    [
        ("model.layers.10.mlp.experts.3.up_proj.qweight", "model.layers.10"),
        ("transformer.encoder.layers.1.input_layernorm.weight", "transformer.encoder.layers.1"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
    ],
)
def test_a_block_ends_at_its_first_number(tensor, block):
    assert block_of(tensor) == block


@pytest.mark.parametrize("name", ["Qwen-72B", "Mixtral-8x7B", "DeepSeek-V2-Lite", "Qwen3-30B-A3B"])
def test_linears_of_large_models_are_all_there(name):
    config = KNOWN_CONFIGS[name]
    shapes, tensors = model_shapes(config), dense_tensors(config)
    listed = sum(lin.count * lin.out_features * lin.in_features for lin in shapes.linears)
    matrices = [t for n, t in tensors.items() if len(t.shape) == 2 and ".gate.weight" not in n]
    outside = 2 * shapes.vocab_size * shapes.hidden_size  # embedding and head
    assert sum(t.nbytes // 2 for t in matrices) == listed + outside


DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "topk_method": "noaux_tc",
}


@pytest.mark.parametrize(
    ("config", "layers", "billions"),
    [
        (DEEPSEEK_V3, 61, 671.0),
        (KNOWN_CONFIGS["Qwen2-72B"], 80, 72.7),
        (KNOWN_CONFIGS["Mixtral-8x7B"], 32, 46.7),
        (KNOWN_CONFIGS["Qwen3-30B-A3B"], 48, 30.5),
        (KNOWN_CONFIGS["DeepSeek-V2-Lite"], 27, 15.7),
        (KNOWN_CONFIGS["Llama-2-13B"], 40, 13.0),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else value,
)
def test_models_have_the_parameters_that_their_makers_state(config, layers, billions):
    model = predicted_model(config | {"num_hidden_layers": layers, "dtype": "bfloat16"})
    assert round(model.nbytes / 2e9, 1) == billions


@pytest.mark.parametrize(
    ("changes", "elements", "windows"),
    [
        ({}, 2 * 4 * 128, [None] * 4),
        ({"num_key_value_heads": 32}, 2 * 32 * 128, [None] * 4),
        ({"head_dim": 64}, 2 * 4 * 64, [None] * 4),
        ({"model_type": "mistral", "sliding_window": 8}, 1024, [8] * 4),
        ({"sliding_window": 8, "use_sliding_window": False}, 1024, [None] * 4),
        (
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            1024,
            [None, None, None, 8],
        ),
        (
            {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2},
            1024,
            [None, 8, None, 8],
        ),
        ({"model_type": "gemma2", "sliding_window": 8}, 1024, [8, None, 8, None]),
        (
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
            | {"v_head_dim": 128},
            576,
            [None] * 4,
        ),
        ({"model_type": "qwen"}, 2 * 32 * 128, [None] * 4),
    ],
)
def test_what_a_layer_keeps_for_a_token(changes, elements, windows):
    config = {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
    } | changes
    layers = kv_layers(config)
    assert [layer.elements for layer in layers] == [elements] * 4
    assert [layer.window for layer in layers] == windows
    kept = kv_cache_bytes(config, context=100, batch=3, dtype="float16")
    assert kept == [elements * 2 * 3 * min(100, window or 100) for window in windows]


def test_the_cache_of_a_running_model_has_these_bytes(tmp_path):
    import torch

    ckpt = ab.open_checkpoint("tiny")
    model = ab.load_model(ckpt)
    with torch.no_grad():
        cache = model(torch.ones(2, 9, dtype=torch.int64), use_cache=True).past_key_values
    real = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    dtype = str(real[0].dtype).removeprefix("torch.")
    found = sum(t.nbytes for t in real)
    assert found == sum(kv_cache_bytes(ckpt.config, context=9, batch=2, dtype=dtype))


@pytest.mark.parametrize("change", [{"context": -1}, {"batch": 0}, {"dtype": "int4"}])
def test_impossible_caches_are_refused(change):
    config = ab.open_checkpoint("tiny").config
    with pytest.raises(ParameterError):
        kv_cache_bytes(config, **{"context": 8} | change)


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**9}, {"num_hidden_layers": "4"}, {"num_experts": 10**7}],
    ids=lambda change: str(next(iter(change))),
)
def test_configs_of_absurd_size_are_refused(change):
    config = KNOWN_CONFIGS["Qwen3-30B-A3B"] | change
    with pytest.raises(FormatError, match="layers|linears"):
        dense_tensors(config)
    if "num_hidden_layers" in change:
        with pytest.raises(FormatError, match="1 to 10,000"):
            kv_layers(config)


def test_a_window_that_is_no_number_is_refused():
    config = KNOWN_CONFIGS["Qwen2-7B"] | {"sliding_window": "all"}
    with pytest.raises(FormatError, match="sliding_window is 'all'"):
        kv_layers(config)
