"""Everything that other tools wrote, read by one parametrized test of each kind.

Small cases lie in tests/data; the whole collection is used where it lies beside the
repository.
"""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from awqbench.formats.headers import DTYPES
from awqbench.formats.layouts.chatglm import write_linear as write_chatglm
from awqbench.formats.layouts.table import read_linear
from awqbench.formats.recognise import recognise
from awqbench.linear import load_quantized

DATA = Path(__file__).resolve().parents[1] / "data" / "conformance"
WHOLE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
ROOT = WHOLE if WHOLE.is_dir() else DATA
LAYOUT_OF = {
    "awq_gemm": "awq-gemm",
    "awq_gemv": "awq-gemv",
    "awq_gemv_fast": "awq-gemv-fast",
    "awq_marlin": "awq-marlin",
    "gptqmodel_awq": "awq-gemm",
    "gptq": "gptq-v2",
    "compressed_tensors": "compressed-tensors",
    "compressed_tensors_0_12": "compressed-tensors",
    "chatglm": "chatglm",
}
CASES = {case["id"]: case for case in json.loads((ROOT / "manifest.json").read_text())["cases"]}


def ids_of(kind):
    return [name for name, case in CASES.items() if case["kind"] == kind]


def test_the_collection_is_whole():
    expected = (44, 16, 9) if ROOT is WHOLE else (9, 3, 9)
    assert tuple(len(ids_of(kind)) for kind in ("linear", "model", "detect")) == expected


def linear_tensors(case, tensors):
    """Name a case's tensors as they are on disk, for every version that it holds."""
    if case["id"].split("/")[1] == "chatglm":
        yield "chatglm", {"weight": tensors["qweight"], "weight_scale": tensors["weight_scale"]}
    elif "qzeros_v2" in tensors:
        for layout, zeros in (("gptq", "qzeros_v1"), ("gptq-v2", "qzeros_v2")):
            yield layout, tensors | {"qzeros": tensors[zeros]}
    else:
        yield LAYOUT_OF[case["id"].split("/")[1]], tensors


@pytest.mark.parametrize("case_id", ids_of("linear"))
def test_linears_decode_bit_for_bit(case_id):
    case = CASES[case_id]
    tensors = load_file(ROOT / case["file"])
    group_size = case.get("group_size")
    if group_size in (None, "None"):
        group_size = -1
    for layout, parts in linear_tensors(case, tensors):
        packed = read_linear(layout, parts, bits=case["bits"], group_size=group_size, name="case")
        decoded = torch.from_numpy(packed.dequantize())
        stored = decoded.to(getattr(torch, packed.scale_dtype))
        if "dequant_kn" in tensors:
            assert torch.equal(stored, tensors["dequant_kn"].T)
        elif "dequant_nk" in tensors:
            assert torch.equal(stored, tensors["dequant_nk"])
        elif "dequant_nk_f32" in tensors:
            assert torch.equal(decoded, tensors["dequant_nk_f32"])
            assert torch.equal(write_chatglm(packed)["weight"], tensors["qweight"])
        else:  # Marlin: what the tool gave its packer, which is (code - 8) * scale in float16
            assert torch.equal(stored, tensors["weight_fake"])


# Distance to the tool's own logits, computed in its dtype: float16, or bfloat16 (8 bits).
TOOL_TOLERANCE = {"float16": 5e-2, "bfloat16": 1e-1}


@pytest.mark.parametrize("case_id", ids_of("model"))
def test_models_give_the_tools_logits(case_id):
    folder = ROOT / case_id
    expected = load_file(folder / "expected.safetensors")
    config = json.loads((folder / "config.json").read_text())
    dtype = config.get("dtype") or config.get("torch_dtype")
    tool = expected["logits_tool"].float()
    # Scales in bfloat16 that the tool casts to float16 before it multiplies.
    loose = "gptqmodel_awq" in case_id
    with torch.no_grad():
        decoded = load_quantized(folder, dtype="float32", dequantize=True)
        logits = decoded(expected["input_ids"]).logits
        if "logits_dequant_fp32" in expected:
            difference = (logits - expected["logits_dequant_fp32"]).abs().max()
            assert difference < (5e-2 if loose else 1e-4)
        assert (logits - tool).abs().max() < TOOL_TOLERANCE[dtype]
        packed = load_quantized(folder, dtype="float32")
        assert (packed(expected["input_ids"]).logits - tool).abs().max() < TOOL_TOLERANCE[dtype]
        longer = packed.generate(expected["input_ids"], max_new_tokens=3, do_sample=False)
    assert longer.shape[1] > expected["input_ids"].shape[1]


RECOGNISED = {
    "bnb_int8": ("bitsandbytes", "int8", 8),
    "bnb_nf4_dq": ("bitsandbytes", "nf4", 4),
    "ct_fp8_dynamic": ("compressed-tensors", "fp8", 8),
    "ct_mxfp4a16": ("compressed-tensors", "mxfp4", 4),
    "ct_nvfp4a16": ("compressed-tensors", "nvfp4", 4),
    "ct_w8a8": ("compressed-tensors", "int8", 8),
    "gguf_tiny": ("gguf", "", None),
    "hqq_linear_w4": ("hqq", "", None),
    "llmc_w3g64_asym_qwen2": ("compressed-tensors", "", 3),
}


def write_headers(folder, files):
    """Write safetensors files that have the given headers and, as holes, their data."""
    for file, entries in files.items():
        header, at = {}, 0
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            dtype = {"torch.uint8": "U8", "torch.int32": "I32", "torch.int64": "I64"}.get(
                entry["dtype"], entry["dtype"].replace("torch.float32", "F32")
            )
            size = math.prod(entry["shape"]) * DTYPES[dtype][0]
            header[name] = entry | {"dtype": dtype, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)


@pytest.mark.parametrize("case_id", ids_of("detect"))
def test_folders_are_recognised(case_id, tmp_path):
    source, kind = ROOT / case_id, case_id.split("/")[1]
    if kind == "gguf_tiny":
        target = source / "tiny.gguf"
    else:
        target = tmp_path
        config = source / "config.json"
        (target / "config.json").write_text(config.read_text() if config.exists() else "{}")
        if (source / "safetensors_headers.json").exists():
            files = json.loads((source / "safetensors_headers.json").read_text())
        else:
            names = json.loads((source / "tensor_names.json").read_text())["HQQLinear.state_dict()"]
            files = {"model.safetensors": {f"model.proj.{n}": e for n, e in names.items()}}
        write_headers(target, files)
    found = recognise(target)
    assert (found.method, found.variant, found.bits) == RECOGNISED[kind]
    if kind == "llmc_w3g64_asym_qwen2":
        assert (found.layout, found.group_size, found.zero_point) == (
            "compressed-tensors",
            64,
            True,
        )
        assert found.modules_to_not_convert == ("model.layers.1.mlp.down_proj", "lm_head")
    else:
        assert found.layout is None
        assert "awqbench quantize" in found.advice and len(found.advice) > 60
