"""The writer publishes a whole folder, or nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from awqbench.errors import OutputError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.writer import CheckpointWriter, require_new_folder

INDEX = "model.safetensors.index.json"


def some_tensors(count=5):
    torch.manual_seed(0)
    return {f"layers.{i}.weight": torch.randn(10, 10) for i in range(count)}


def write_all(out, tensors, *, max_shard_bytes=5_000_000_000, **kwargs):
    with CheckpointWriter(out, max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish({"model_type": "tiny"}, **kwargs)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_file(tmp_path):
    out = write_all(tmp_path / "out", some_tensors())
    assert out == tmp_path / "out"
    assert names_in(out) == ["config.json", "model.safetensors"]
    ckpt = open_checkpoint(out)
    assert ckpt.config == {"model_type": "tiny"}
    for name, tensor in some_tensors().items():
        assert torch.equal(ckpt.read(name), tensor)
    assert names_in(tmp_path) == ["out"]


# 400 bytes a tensor: one, two, five a shard.
@pytest.mark.parametrize(("limit", "n_shards"), [(1, 5), (400, 5), (799, 5), (800, 3), (1999, 2)])
def test_shards_and_index(tmp_path, limit, n_shards):
    out = write_all(tmp_path / "out", some_tensors(), max_shard_bytes=limit)
    files = [f"model-{i:05d}-of-{n_shards:05d}.safetensors" for i in range(1, n_shards + 1)]
    assert names_in(out) == sorted(["config.json", INDEX, *files])
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert sorted(index["weight_map"]) == sorted(some_tensors())
    assert sorted(set(index["weight_map"].values())) == files
    ckpt = open_checkpoint(out)
    for name, tensor in some_tensors().items():
        assert torch.equal(ckpt.read(name), tensor)
        assert ckpt.tensors[name].file.name == index["weight_map"][name]
    sizes = [sum(i.nbytes for i in ckpt.tensors.values() if i.file.name == f) for f in files]
    assert max(sizes) <= max(limit, 400)


def test_transformers_metadata_and_dtypes(tmp_path):
    from safetensors import safe_open

    tensors = {"a": torch.ones(3).bfloat16(), "b": torch.ones(2, 4).half().T, "c": torch.ones(0, 3)}
    out = write_all(tmp_path / "out", tensors | {"d": torch.arange(3, dtype=torch.int32)})
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    ckpt = open_checkpoint(out)
    for name, tensor in tensors.items():
        assert ckpt.read(name).dtype == tensor.dtype and torch.equal(ckpt.read(name), tensor)


def test_a_folder_without_tensors(tmp_path):
    assert open_checkpoint(write_all(tmp_path / "out", {})).tensors == {}


def test_side_files_and_texts(tmp_path):
    source = write_all(tmp_path / "source", some_tensors())
    for name in ("tokenizer.json", "generation_config.json", "training_args.bin", "notes.txt"):
        (source / name).write_text(name)
    out = write_all(
        tmp_path / "out", some_tensors(), side_files=open_checkpoint(source), run_record='{"a": 1}'
    )
    assert names_in(out) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "run_record.json",
        "tokenizer.json",
    ]
    assert (out / "tokenizer.json").read_text() == "tokenizer.json"
    assert json.loads((out / "run_record.json").read_text()) == {"a": 1}


def test_nothing_is_seen_before_the_end(tmp_path, monkeypatch):
    seen = []
    rename = Path.rename

    def watched(self, target):
        if Path(target) == tmp_path / "out":
            seen.append((tmp_path / "out").exists())
            seen.append(names_in(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    with CheckpointWriter(tmp_path / "out", max_shard_bytes=400) as writer:
        for name, tensor in some_tensors(3).items():
            writer.add(name, tensor)
            assert not (tmp_path / "out").exists()
            assert all(name.startswith(".") for name in names_in(tmp_path))
        writer.finish({})
    # The folder was whole when its one rename made it visible.
    assert seen == [False, names_in(tmp_path / "out")]
    assert len(names_in(tmp_path / "out")) == 5


def test_an_exception_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError),
        CheckpointWriter(tmp_path / "out", max_shard_bytes=1) as writer,
    ):
        writer.add("a", torch.ones(3))
        writer.add("b", torch.ones(3))
        raise RuntimeError
    assert names_in(tmp_path) == []


def test_leaving_without_finish_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add("a", torch.ones(3))
    assert names_in(tmp_path) == ["out"] and names_in(tmp_path / "out") == []


def test_a_config_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), CheckpointWriter(tmp_path / "out") as writer:
        writer.finish({"dtype": torch.float16})
    assert names_in(tmp_path) == []


def test_a_folder_that_holds_files_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    for use in (require_new_folder, CheckpointWriter):
        with pytest.raises(OutputError, match=r"out exists and is not empty; choose another"):
            use(out)
    assert names_in(tmp_path) == ["out"] and (out / "precious.txt").read_text() == "mine"


def test_a_file_in_the_folder_s_place_is_left_alone(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        CheckpointWriter(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_files_that_appear_meanwhile_are_left_alone(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="out cannot be made"), CheckpointWriter(out) as writer:
        writer.add("a", torch.ones(3))
        out.mkdir()
        (out / "precious.txt").write_text("mine")
        writer.finish({})
    assert names_in(tmp_path) == ["out"] and names_in(out) == ["precious.txt"]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "out").mkdir()
    write_all(tmp_path / "out", some_tensors())
    deep = write_all(tmp_path / "a" / "b" / "out", some_tensors())
    assert len(open_checkpoint(deep).tensors) == 5


@pytest.mark.parametrize("below", ["out", "a/b/out"])
def test_a_parent_that_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    for use in (require_new_folder, CheckpointWriter):
        with pytest.raises(OutputError, match="file cannot be written; choose a folder"):
            use(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fails_is_an_output_error(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="out cannot be written"), CheckpointWriter(out) as writer:
        writer.add("a", torch.ones(3))
        shutil.rmtree(writer.partial)  # as if the disk had gone
        writer.finish({})
    assert names_in(tmp_path) == []


def test_relative_and_home_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert require_new_folder("out") == require_new_folder("~/out") == tmp_path / "out"
