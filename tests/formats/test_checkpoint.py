"""Model folders, good, damaged and hostile."""

import json
import pickle
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from awqbench.errors import AlreadyQuantizedError, FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.layouts.awq import write_linear
from awqbench.packed import PackedWeight, quantize_weight

INDEX = "model.safetensors.index.json"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def some_tensors():
    torch.manual_seed(0)
    return {
        "model.embed.weight": torch.randn(600, 17).to(torch.bfloat16),
        "model.norm.weight": torch.randn(64).to(torch.float16),
        "model.proj.weight": torch.randn(16, 64),
        "model.ids": torch.arange(7),
        "model.none": torch.zeros(0, 4),
        "model.scale": torch.tensor(2.5, dtype=torch.float64),
    }


def make_folder(folder, tensors=None, *, shards=1, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = some_tensors() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"} | (config or {})))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        names = list(tensors)[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_refused(folder, *words, use=open_checkpoint):
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        use(folder)
    assert time.perf_counter() - start < 5
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("shards", [1, 2, 6])
def test_every_tensor_is_read_as_written(tmp_path, shards):
    tensors = some_tensors()
    ckpt = open_checkpoint(make_folder(tmp_path / "m", tensors, shards=shards))
    assert ckpt.config == {"model_type": "tiny"} and ckpt.quantization is None
    assert set(ckpt.tensors) == set(tensors)
    assert ckpt.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
    for name, tensor in tensors.items():
        read = ckpt.read(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
        read.zero_()  # a copy: writable, and the file stays as it was
        assert torch.equal(ckpt.read(name), tensor)


def test_opens_strings_and_checkpoints_and_any_single_file(tmp_path):
    folder = make_folder(tmp_path / "m")
    ckpt = open_checkpoint(str(folder))
    assert open_checkpoint(ckpt) is ckpt
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert set(open_checkpoint(folder).tensors) == set(some_tensors())


def test_a_tensor_that_is_not_there(tmp_path):
    ckpt = open_checkpoint(make_folder(tmp_path / "m"))
    assert_refused(ckpt, "m has no tensor lm_head.weight", use=lambda c: c.read("lm_head.weight"))
    assert_refused(ckpt, "m has no linear lm_head", use=lambda c: c.linear("lm_head"))


@pytest.mark.parametrize("keep_bytes", [0, 4, 2000])
def test_a_file_that_shrank_since_it_was_opened(tmp_path, keep_bytes):
    ckpt = open_checkpoint(make_folder(tmp_path / "m"))
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    assert_refused(ckpt, "model.safetensors", use=lambda c: c.read("model.proj.weight"))
    file.unlink()
    assert_refused(ckpt, "model.safetensors", use=lambda c: c.read("model.proj.weight"))


def test_reading_one_tensor_reads_no_other(tmp_path):
    folder = make_folder(tmp_path / "m", shards=6)
    ckpt = open_checkpoint(folder)
    info = ckpt.tensors["model.proj.weight"]
    for file in folder.glob("*.safetensors"):
        if file != info.file:
            file.unlink()
    assert torch.equal(ckpt.read("model.proj.weight"), some_tensors()["model.proj.weight"])


@pytest.mark.parametrize("shards", [1, 2])
def test_truncated_shard(tmp_path, shards):
    folder = make_folder(tmp_path / "m", shards=shards)
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(folder, file.name, "tensor model.", "truncated")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no config.json: not a model folder"),
        ("", "config.json cannot be read as JSON"),
        ("{'a': 1}", "config.json cannot be read as JSON"),
        ("\xff\xfe", "config.json cannot be read as JSON"),
        ("[" * 100_000, "config.json cannot be read as JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "config.json cannot be read as JSON"),
        ("[1]", "config.json is not a JSON object"),
        ("null", "config.json is not a JSON object"),
        ('"tiny"', "config.json is not a JSON object"),
    ],
    ids=lambda text: str(text)[:16],
)
def test_damaged_config(tmp_path, text, words):
    folder = make_folder(tmp_path / "m")
    if text is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_bytes(text.encode("latin1"))
    assert_refused(folder, words)


def test_config_that_is_a_folder(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert_refused(folder, "config.json cannot be read")


@pytest.mark.parametrize(
    "file",
    [
        "gone.safetensors",
        "x" * 5000,
        "é" * 200,
        "\ud800.safetensors",
        "a\0b.safetensors",
    ],
    ids=lambda file: ascii(file[:12]),
)
def test_index_that_names_a_missing_file(tmp_path, file):
    folder = make_folder(tmp_path / "m", shards=2)
    write_index(folder, {"model.proj.weight": file})
    assert_refused(folder, INDEX, ascii(file[:6])[1:-1], "missing")


@pytest.mark.parametrize(
    "file", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".", ".."]
)
def test_index_that_points_outside_the_folder(tmp_path, file):
    make_folder(tmp_path / "other")
    make_folder(tmp_path / "m" / "sub")
    folder = make_folder(tmp_path / "m", shards=2)
    write_index(folder, {"model.proj.weight": file})
    assert_refused(folder, INDEX, "outside the folder", repr(file))


def test_index_that_points_at_another_kind_of_file(tmp_path):
    folder = make_folder(tmp_path / "m", shards=2)
    write_index(folder, {"model.proj.weight": "config.json"})
    assert_refused(folder, "config.json: not a safetensors file")


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path):
    folder = make_folder(tmp_path / "m", shards=2)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    write_index(folder, weight_map | {"model.extra": "model-00001-of-00002.safetensors"})
    assert_refused(folder, INDEX, "model.extra", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": null}'],
)
def test_damaged_index(tmp_path, text):
    folder = make_folder(tmp_path / "m", shards=2)
    (folder / INDEX).write_text(text)
    assert_refused(folder, INDEX)


def test_pickles_are_not_opened(tmp_path):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    assert_refused(
        folder, "m holds its weights as pickles (pytorch_model.bin)", "safe_serialization"
    )
    assert not ran.exists()


def test_code_beside_the_weights_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = make_folder(tmp_path / "m", config={"auto_map": auto_map})
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    ckpt = open_checkpoint(folder)
    ckpt.read("model.proj.weight")
    assert ckpt.digest and not ran.exists()


def test_no_weights_and_no_folder(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert_refused(
        tmp_path / "m", "m holds no model.safetensors and no model.safetensors.index.json"
    )
    assert_refused(tmp_path / "nowhere", "neither a folder here nor a model")


def test_digest_is_of_the_model_not_of_its_files(tmp_path):
    one = open_checkpoint(make_folder(tmp_path / "one")).digest
    for shards in (2, 3, 6):
        assert open_checkpoint(make_folder(tmp_path / f"{shards}", shards=shards)).digest == one
    reordered = dict(reversed(some_tensors().items()))
    assert open_checkpoint(make_folder(tmp_path / "r", reordered)).digest == one
    saved_by = {"transformers_version": "5.0"}
    assert open_checkpoint(make_folder(tmp_path / "v", config=saved_by)).digest == one


def test_digest_sees_changes(tmp_path):
    digests = [open_checkpoint(make_folder(tmp_path / "0")).digest]

    def change(config=None, **changed):
        folder = make_folder(tmp_path / f"{len(digests)}", some_tensors() | changed, config=config)
        digests.append(open_checkpoint(folder).digest)

    for name in ("model.embed.weight", "model.norm.weight", "model.ids", "model.scale"):
        for place in {0, some_tensors()[name].numel() // 2, some_tensors()[name].numel() - 1}:
            tensor = some_tensors()[name]
            tensor.view(-1)[place] += 1
            change(**{name: tensor})
    change(**{"model.proj.weight": some_tensors()["model.proj.weight"].reshape(64, 16)})
    change(**{"model.norm.weight": some_tensors()["model.norm.weight"].view(torch.bfloat16)})
    change(**{"model.none": torch.zeros(4, 0)})
    change(**{"model.more": torch.zeros(1)})
    change(config={"rope_theta": 1e4})
    assert len(set(digests)) == len(digests) > 14


def quantized_folder(folder, **config):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).numpy()
    packed = quantize_weight(weight, 4, 32, scale_dtype="float16")
    tensors = {f"model.proj.{part}": t for part, t in write_linear(packed).items()}
    tensors["model.lm_head.weight"] = torch.ones(8, 16)
    return make_folder(folder, tensors, config={"quantization_config": AWQ | config}), packed


def test_linears_are_packed_or_dense(tmp_path):
    folder, packed = quantized_folder(tmp_path / "q")
    ckpt = open_checkpoint(folder)
    linear = ckpt.linear("model.proj")
    assert isinstance(linear, PackedWeight) and linear.name == "model.proj"
    assert (linear.codes == packed.codes).all() and (linear.scales == packed.scales).all()
    assert torch.equal(ckpt.linear("model.lm_head"), torch.ones(8, 16))
    assert ckpt.quantized_linears() == ["model.proj"]
    assert ckpt.quantization.summary() == "awq-gemm, 4 bits, group size 32"


def test_parts_of_a_linear_may_lie_in_different_shards(tmp_path):
    folder, packed = quantized_folder(tmp_path / "q")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    config = {"quantization_config": AWQ}
    ckpt = open_checkpoint(make_folder(folder, tensors, shards=4, config=config))
    assert len({ckpt.tensors[f"model.proj.{p}"].file for p in ("qweight", "qzeros", "scales")}) == 3
    assert (ckpt.linear("model.proj").codes == packed.codes).all()


def test_a_packed_linear_with_a_part_missing(tmp_path):
    folder, _ = quantized_folder(tmp_path / "q")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.proj.qzeros"]
    save_file(tensors, folder / "model.safetensors")
    words = "tensor model.proj.qzeros is missing"
    assert_refused(open_checkpoint(folder), words, use=lambda c: c.linear("model.proj"))


def test_quantized_folder_is_refused_where_full_precision_is_needed(tmp_path):
    folder, _ = quantized_folder(tmp_path / "q")
    with pytest.raises(AlreadyQuantizedError) as caught:
        open_checkpoint(folder).require_full_precision()
    for words in (
        "q is already quantized (awq-gemm, 4 bits, group size 32)",
        "a second error",
        "original bf16 or fp16 folder",
        "load_quantized()",
    ):
        assert words in str(caught.value)
    open_checkpoint(make_folder(tmp_path / "m")).require_full_precision()


def test_packed_weights_without_a_configuration(tmp_path):
    folder, _ = quantized_folder(tmp_path / "q")
    (folder / "config.json").write_text("{}")
    words = ("q holds packed weights", "no quantization_config")
    assert_refused(open_checkpoint(folder), *words, use=lambda c: c.quantization)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bits": "4"}, "quantization_config.bits is '4', not a number"),
        ({"bits": True}, "bits is True"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"bits": None}, "without the number of bits"),
        ({"bits": 1}, "bits 1; it has 2, 3, 4, 5, 6, 7, 8"),
        ({"bits": 2**70}, "out of range"),
        ({"group_size": "128"}, "group_size is '128', not a number"),
        ({"group_size": [32]}, "not a number"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert is 3, not a list"),
        ({"modules_to_not_convert": "lm_head"}, "not a list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_quantization_config(tmp_path, config, words):
    folder, _ = quantized_folder(tmp_path / "q", **config)
    assert_refused(open_checkpoint(folder), "config.json", words, use=lambda c: c.quantization)


@pytest.mark.parametrize("section", [[], "awq", 4, [AWQ]])
def test_quantization_config_that_is_no_object(tmp_path, section):
    ckpt = open_checkpoint(make_folder(tmp_path / "m", config={"quantization_config": section}))
    assert_refused(ckpt, "quantization_config is not an object", use=lambda c: c.quantization)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "bitblas"}, "'gptq'"),
        ({"quant_method": "gptq", "bits": 5}, "'gptq'"),
        ({"quant_method": "foo"}, "'foo'"),
        ({"quant_method": None}, "'unknown'"),
        ({"version": "gemx"}, "'awq'"),
        ({"version": ["gemm"]}, "'awq'"),
    ],
)
def test_layouts_that_are_only_recognised(tmp_path, config, words):
    folder, _ = quantized_folder(tmp_path / "q", **config)
    ckpt = open_checkpoint(folder)
    assert ckpt.quantization.layout is None
    assert_refused(ckpt, f"quantized by {words}", use=lambda c: c.linear("model.proj"))
    with pytest.raises(AlreadyQuantizedError):
        ckpt.require_full_precision()


def test_older_keys_and_the_skipped_modules(tmp_path):
    config = {"bits": None, "group_size": None, "w_bit": 4, "q_group_size": 32, "version": "GEMM"}
    section = {k: v for k, v in (AWQ | config).items() if v is not None}
    folder, _ = quantized_folder(tmp_path / "q")
    section["modules_to_not_convert"] = ["lm_head"]
    (folder / "config.json").write_text(json.dumps({"quantization_config": section}))
    found = open_checkpoint(folder).quantization
    assert (found.bits, found.group_size, found.layout) == (4, 32, "awq-gemm")
    assert found.modules_to_not_convert == ("lm_head",)
