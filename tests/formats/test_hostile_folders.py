"""Model folders that a stranger made to hurt: each refused by name, none of them obeyed."""

import json
import os
import pickle
import struct

import fuzz_folders
import numpy as np
import pytest
from small_folders import Folder, base_folders

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.shards import INDEX_FILE, SINGLE_FILE

BASES = base_folders()
PACKED = [name for name in BASES if name not in ("dense", "bitsandbytes")]
WITH_QZEROS = [name for name in PACKED if "l.q_proj.qzeros" in BASES[name][1]]
OF_SAME_WIDTH = {"I32": "F32", "I16": "U16", "F16": "I16", "F32": "I32", "I64": "F64", "I8": "U8"}


def small(name, n_shards=1):
    return Folder(*BASES[name], n_shards)


def write(path, folder):
    path.mkdir(exist_ok=True)
    for name, raw in (folder if isinstance(folder, dict) else folder.files()).items():
        (path / name).write_bytes(raw)
    return path


def read_all(path):
    ckpt = open_checkpoint(path)
    assert ckpt.quantization is None or ckpt.quantization.summary()
    return [ckpt.linear(name) for name in (*ckpt.quantized_linears(), "l.q_proj")]


def assert_refused(path, *words):
    with pytest.raises(FormatError) as caught:
        read_all(path)
    for word in words:
        assert word in str(caught.value)
    fuzz_folders.check_message(str(caught.value))


def entries(name):
    """Return the parts of one packed linear, and the folder to change them in."""
    return [part for part in BASES[name][1] if part.startswith("l.q_proj.")]


PARTS = [pytest.param(name, part, id=f"{name}-{part}") for name in PACKED for part in entries(name)]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_folders_are_read_before_they_are_damaged(tmp_path, name, n_shards):
    linears = read_all(write(tmp_path / "m", small(name, n_shards)))
    assert len(linears) == 3 and all(linear.dequantize().any() for linear in linears)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_wrong_shape(tmp_path, name, part):
    folder = small(name)
    entry = folder.headers[SINGLE_FILE][part]
    n_values = int(np.prod(entry["shape"]))
    entry["shape"] = [n_values] if len(entry["shape"]) > 1 else [n_values, 1]
    assert_refused(write(tmp_path / "m", folder), SINGLE_FILE, "l.q_proj")


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_wrong_dtype(tmp_path, name, part):
    folder = small(name)
    entry = folder.headers[SINGLE_FILE][part]
    entry["dtype"] = OF_SAME_WIDTH[entry["dtype"]]
    assert_refused(write(tmp_path / "m", folder), "l.q_proj")


@pytest.mark.parametrize(
    ("name", "bits"),
    [("awq-gemm", 9), ("awq-gemm", 1), ("awq-gemv", 3), ("awq-gemv_fast", 8), ("awq-marlin", 8),
     ("gptq", 5), ("gptq", 16), ("gptq-v2", 0), ("gptq-v2", -4), ("auto-round", 1)],
)  # fmt: skip
def test_bits_that_the_layout_cannot_have(tmp_path, name, bits):
    folder = small(name)
    folder.config["quantization_config"]["bits"] = bits
    folder.config["quantization_config"].pop("extra_config", None)
    path = write(tmp_path / "m", folder)
    if (name, bits) == ("gptq", 5):  # GPTQModel's planes: recognised, not read
        assert_refused(path, "'gptq'", "cannot read", "gptq_p")
    else:
        assert_refused(path, "config.json", f"bits {bits};")


@pytest.mark.parametrize(("name", "bits"), [("compressed-tensors-4", 9), ("chatglm-4", 3)])
def test_bits_that_the_layout_cannot_have_under_other_keys(tmp_path, name, bits):
    folder = small(name)
    if name == "chatglm-4":
        folder.config["quantization_bit"] = bits
    else:
        groups = folder.config["quantization_config"]["config_groups"]
        groups["group_0"]["weights"]["num_bits"] = bits
    assert_refused(write(tmp_path / "m", folder), "config.json", f"bits {bits};")


@pytest.mark.parametrize("name", WITH_QZEROS)
def test_qzeros_are_missing(tmp_path, name):
    folder = small(name)
    del folder.headers[SINGLE_FILE]["l.q_proj.qzeros"]
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.qzeros", "missing")


@pytest.mark.parametrize("group", [2, -1, 2**31 - 1, -(2**31)])
def test_g_idx_out_of_range(tmp_path, group):
    folder = small("gptq")
    start = folder.headers[SINGLE_FILE]["l.q_proj.g_idx"]["data_offsets"][0]
    folder.data[SINGLE_FILE][start + 40 : start + 44] = struct.pack("<i", group)
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.g_idx", str(group))


def test_weight_shape_claims_more_than_there_is(tmp_path):
    folder = small("compressed-tensors-4")
    start = folder.headers[SINGLE_FILE]["l.q_proj.weight_shape"]["data_offsets"][0]
    folder.data[SINGLE_FILE][start + 8 : start + 16] = struct.pack("<q", 2**50)
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.weight_")


@pytest.mark.parametrize("file", ["../m2/model.safetensors", "/etc/passwd", "a/../../x", ".."])
def test_index_points_outside_the_folder(tmp_path, file):
    write(tmp_path / "m2", small("gptq"))
    folder = small("gptq", 2)
    folder.index["weight_map"]["l.q_proj.qweight"] = file
    assert_refused(write(tmp_path / "m", folder), INDEX_FILE, "outside the folder", file)


def test_index_points_at_a_missing_shard(tmp_path):
    folder = small("gptq", 2)
    folder.index["weight_map"]["l.q_proj.qweight"] = "model-9.safetensors"
    assert_refused(write(tmp_path / "m", folder), INDEX_FILE, "model-9.safetensors", "missing")


def test_index_names_a_tensor_that_its_shard_lacks(tmp_path):
    folder = small("gptq", 2)
    del folder.headers["model-0.safetensors"]["l.q_proj.qweight"]
    words = (INDEX_FILE, "l.q_proj.qweight", "model-0.safetensors")
    assert_refused(write(tmp_path / "m", folder), *words)


@pytest.mark.parametrize("name", ["\x1b[2J", "\ud800"])
@pytest.mark.parametrize("as_file", [True, False])
def test_names_in_the_index_are_made_harmless(tmp_path, name, as_file):
    folder = small("gptq", 2)
    pair = ("l.q_proj.qweight", name) if as_file else (name, "model-0.safetensors")
    folder.index["weight_map"].update([pair])
    assert_refused(write(tmp_path / "m", folder), INDEX_FILE)


def test_endless_names_in_the_index(tmp_path):
    folder = small("gptq", 2)
    folder.index["weight_map"]["x" * 100_000] = "model-0.safetensors"
    assert_refused(write(tmp_path / "m", folder), INDEX_FILE)


@pytest.mark.parametrize("name", ["compressed-tensors-5", "compressed-tensors-8"])
def test_zero_points_are_missing_where_the_config_is_asymmetric(tmp_path, name):
    folder = small(name)
    del folder.headers[SINGLE_FILE]["l.q_proj.weight_zero_point"]
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.weight_zero_point", "missing")


@pytest.mark.parametrize("name", ["chatglm-4", "chatglm-8"])
def test_scales_of_chatglm_are_missing(tmp_path, name):
    folder = small(name)
    del folder.headers[SINGLE_FILE]["l.q_proj.weight_scale"]
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.weight_scale", "missing")


def test_g_idx_is_missing_where_the_config_says_act_order(tmp_path):
    folder = small("gptq")
    folder.config["quantization_config"]["desc_act"] = True
    del folder.headers[SINGLE_FILE]["l.q_proj.g_idx"]
    assert_refused(write(tmp_path / "m", folder), "l.q_proj.g_idx", "missing")


@pytest.mark.parametrize("file", ["config.json", SINGLE_FILE])
def test_a_pipe_in_place_of_a_file(tmp_path, file):
    path = write(tmp_path / "m", small("gptq"))
    (path / file).unlink()
    os.mkfifo(path / file)
    assert fuzz_folders.attempt(path, 2.0)[0] == "refused"


def test_a_source_that_is_too_long_for_a_path():
    with pytest.raises(FormatError, match="neither a folder here"):
        open_checkpoint("a" * 5000)


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 100])
def test_truncated_header(tmp_path, n_bytes):
    files = small("awq-gemv").files()
    files[SINGLE_FILE] = files[SINGLE_FILE][:n_bytes]
    assert_refused(write(tmp_path / "m", files), SINGLE_FILE, "truncated", str(n_bytes))


def test_truncated_data(tmp_path):
    files = small("awq-gemv").files()
    files[SINGLE_FILE] = files[SINGLE_FILE][:-1]
    assert_refused(write(tmp_path / "m", files), SINGLE_FILE, "l.norm.weight", "truncated")


@pytest.mark.parametrize("length", [10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_overlong_header(tmp_path, length):
    files = small("awq-gemm").files()
    files[SINGLE_FILE] = struct.pack("<Q", length) + files[SINGLE_FILE][8:]
    assert_refused(write(tmp_path / "m", files), SINGLE_FILE, f"{length:,}")


@pytest.mark.parametrize(
    ("shape", "span", "words"),
    [
        ([2**40, 2**10], [0, 2**51], "truncated"),
        ([2**40, 2**10], [0, 16], "needs 2,251,799,813,685,248 bytes"),
        ([2**61, 2**61], [0, 16], "not a list of sizes"),
        ([8], [2**51, 2**51 + 16], "truncated"),
    ],
)
def test_header_claims_petabytes(tmp_path, shape, span, words):
    folder = small("awq-gemm")
    entry = {"dtype": "F16", "shape": shape, "data_offsets": span}
    folder.headers[SINGLE_FILE] = {"l.q_proj.scales": entry}
    assert_refused(write(tmp_path / "m", folder), SINGLE_FILE, "l.q_proj.scales", words)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", SINGLE_FILE])
def test_pickle_with_code_in_it_is_not_run(tmp_path, file):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    raw = pickle.dumps(Attack())
    write(tmp_path / "m", {"config.json": b"{}", file: raw})
    assert_refused(tmp_path / "m", file)
    assert not ran.exists()
    pickle.loads(raw).close()
    assert ran.exists()  # the attack does work where it is run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"not json", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'"awq"', "not a JSON object"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "cannot be read as JSON"),
        (b"[" * 1_000_000, "cannot be read as JSON"),
    ],
    ids=["text", "bytes", "empty", "list", "string", "deep object", "deep list"],
)
def test_config_that_is_no_json_object(tmp_path, text, words):
    files = small("gptq").files() | {"config.json": text}
    assert_refused(write(tmp_path / "m", files), "config.json", words)


@pytest.mark.parametrize("depth", [100, 900, 2000])
def test_config_whose_fields_are_deeply_nested(tmp_path, depth):
    nested = "[" * depth + "]" * depth
    section = f'{{"quant_method": "gptq", "bits": {nested}, "dynamic": {{"a": {nested}}}}}'
    files = small("gptq").files()
    files["config.json"] = f'{{"quantization_config": {section}}}'.encode()
    assert_refused(write(tmp_path / "m", files), "config.json")


@pytest.mark.parametrize(
    "pattern", ["(", r"((?1))", "a" * 5000, r"(a|aa)+\1!", "(?P<n>", "a{99999999999}"]
)
def test_patterns_that_are_none_or_never_end(tmp_path, pattern):
    config, tensors = BASES["gptq"]
    long_name = "a" * 60
    renamed = {name.replace("q_proj", long_name): tensor for name, tensor in tensors.items()}
    folder = Folder(config, {n.removeprefix("l."): t for n, t in renamed.items()}, 1)
    folder.config["quantization_config"]["dynamic"] = {pattern: {"bits": 4}}
    path = write(tmp_path / "m", folder)
    with pytest.raises(FormatError, match="config.json: "):
        open_checkpoint(path).linear(long_name)


def test_a_short_fuzz_run():
    counts, faults = fuzz_folders.run(0, range(2000), limit_s=20)
    assert not faults, json.dumps(fuzz_folders.by_last_line(faults), indent=1)
    assert counts["read"] > 400 and counts["refused"] > 400


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch):
    def broken(path):
        raise KeyError("weight_map")

    monkeypatch.setattr(fuzz_folders, "open_checkpoint", broken)
    counts, faults = fuzz_folders.run(0, range(3))
    assert counts == {"KeyError": 3} and [number for number, _ in faults] == [0, 1, 2]
    monkeypatch.setattr(fuzz_folders, "open_checkpoint", lambda path: spin())
    counts, _ = fuzz_folders.run(0, range(1), limit_s=0.05)
    assert counts == {"TookTooLongError": 1}


def spin():
    while True:
        pass
