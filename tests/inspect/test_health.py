"""The health scan counts what a cast does, as the slow reference does."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

from awqbench.errors import FormatError, ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect import health as room
from awqbench.inspect.health import (
    activation_health,
    cast_thresholds,
    health,
    pieces,
    tensor_health,
)
from awqbench.numerics import LIMITS, cast_figures, round_to
from awqbench.quantize.folds.find import Site
from awqbench.quantize.statistics.moments import Moments
from awqbench.quantize.statistics.stats import FORMAT, save_block, save_manifest

CASTS = ("float16", "bfloat16", "float32")


def wide(dtype, shape=(6, 40), seed=0):
    """Magnitudes over the whole range of a dtype, with zeros and both signs."""
    rng = np.random.default_rng(seed)
    span = 6.0 if dtype == torch.float16 else 40.0
    values = rng.normal(size=shape) * 10 ** rng.uniform(-span, min(span, 4.5), size=shape)
    values[rng.random(shape) < 0.1] = 0
    return torch.from_numpy(values).to(dtype)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_counts_are_those_of_the_reference(dtype, cast):
    tensor = wide(dtype)
    tensor[0, 0], tensor[1, 1], tensor[2, 2] = torch.nan, torch.inf, -torch.inf
    row = tensor_health(tensor, cast_dtype=cast, group_size=16)
    figures = cast_figures(tensor.double().numpy(), cast)
    short = room.SHORT_NAMES[cast]
    finite = tensor[tensor.isfinite()].double().abs()
    nonzero = int((finite > 0).sum())
    assert row["nonfinite"] == figures.nonfinite == 3
    assert row[f"overflow_{short}"] == figures.overflow
    assert row[f"flushed_{short}"] * nonzero == pytest.approx(figures.flushed_to_zero)
    assert row[f"subnormal_{short}"] * nonzero == pytest.approx(figures.subnormal)
    assert row["absmax"] == figures.absmax
    assert row["smallest_nonzero"] == float(finite[finite > 0].min())


@pytest.mark.parametrize("cast", CASTS)
def test_thresholds_are_where_rounding_changes(cast):
    limits = cast_thresholds(cast)
    before, after = np.nextafter(limits.overflow_from, 0), limits.overflow_from
    assert np.isfinite(round_to(np.array(before), cast))
    assert np.isinf(round_to(np.array(after), cast))
    before, after = limits.flushed_upto, np.nextafter(limits.flushed_upto, 1)
    assert round_to(np.array(before), cast) == 0 and round_to(np.array(after), cast) > 0
    normal = LIMITS[cast].smallest_normal
    before = np.nextafter(limits.subnormal_below, 0)
    assert round_to(np.array(before), cast) < normal
    assert round_to(np.array(limits.subnormal_below), cast) == normal


def test_parts_add_up(monkeypatch):
    tensor = wide(torch.bfloat16, (50, 40))
    whole = tensor_health(tensor, group_size=16)
    monkeypatch.setattr(pieces, "BYTES_AT_ONCE", 200)
    assert tensor_health(tensor, group_size=16) == whole


@pytest.mark.parametrize("group_size", [8, 16, 7, 1000])
def test_groups_that_the_cast_makes_zero(group_size):
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[:3] *= 2.0**-30
    weight[5] = 0  # zero before the cast: not created by it
    row = tensor_health(weight, group_size=group_size)
    n_groups = -(-32 // group_size)
    assert row["groups"] == 12 * n_groups
    assert row["zero_groups_created"] == 3 * n_groups
    assert 0 < row["smallest_group"] < 2.0**-25
    assert (
        tensor_health(weight, group_size=group_size, cast_dtype="bfloat16")["zero_groups_created"]
        == 0
    )


def test_one_signed_groups_are_those_without_zero_in_their_range():
    weight = torch.tensor([[1.0, 2.0, -1.0, 1.0], [-1.0, -3.0, 0.0, 2.0]])
    assert tensor_health(weight, group_size=2)["one_signed_groups"] == 2


@pytest.mark.parametrize(
    ("name", "shape"), [("model.embed_tokens.weight", (4, 8)), ("model.norm.weight", (8,))]
)
def test_only_linears_have_group_figures(name, shape):
    row = tensor_health(torch.ones(shape), name=name)
    assert row["groups"] is row["zero_groups_created"] is row["smallest_group"] is None
    assert row["absmax"] == 1.0


@pytest.mark.parametrize("tensor", [torch.zeros(4, 8), torch.empty(0, 8), torch.tensor(0.0)])
def test_nothing_but_zeros(tensor):
    row = tensor_health(tensor)
    assert row["absmax"] == row["flushed_f16"] == row["overflow_f16"] == 0
    assert row["smallest_nonzero"] is None and row["smallest_group"] is None


def test_integers_have_no_figures():
    row = tensor_health(torch.ones(4, 4, dtype=torch.int32), name="x.qweight")
    assert row["absmax"] is row["nonfinite"] is row["groups"] is None


@pytest.mark.parametrize("changes", [{"group_size": 0}, {"cast_dtype": "float8"}])
def test_a_wrong_setting_is_named(changes):
    with pytest.raises(ParameterError, match="choose"):
        tensor_health(torch.ones(2, 2), **changes)


def test_a_row_for_each_tensor_of_a_checkpoint(tmp_path):
    ckpt = open_checkpoint(save_tiny_model("qwen3", tmp_path / "m", dtype="bfloat16"))
    table = health(ckpt, group_size=32)
    assert list(table["name"]) == list(ckpt.tensors)
    for row in table.itertuples():
        figures = cast_figures(ckpt.read(row.name).float().numpy(), "float16")
        assert (row.absmax, row.overflow_f16) == (figures.absmax, figures.overflow)
        assert row.dtype == "bfloat16" and row.shape == ckpt.tensors[row.name].shape
    linears = table[table["groups"].notna()]
    assert len(linears) == 2 * 7
    assert str(table["zero_groups_created"].dtype) == "Int64"


def saved_stats(folder, x):
    moments = Moments(x.shape[1])
    moments.add(x)
    site = Site(
        name="mlp.gate_proj",
        linears=("mlp.gate_proj", "mlp.up_proj"),
        in_features=x.shape[1],
        prev_op="norm",
        kind="norm",
        source=None,
    )
    folder.mkdir()
    save_block(folder, 0, [(site, moments.tensors())])
    return save_manifest(folder, {"format": FORMAT, "n_blocks": 1, "prefix": "layers"})


def test_activations_have_headroom(tmp_path):
    x = torch.ones(10, 5)
    x[:, 2] = 40.0
    x[3, 1] = torch.inf
    row = activation_health(saved_stats(tmp_path / "s", x)).iloc[0]
    assert (row["block"], row["site"], row["tokens"]) == (0, "mlp.gate_proj", 10)
    assert row["linears"] == "mlp.gate_proj, mlp.up_proj"
    assert row["absmax"] == 40.0 and row["nonfinite_tokens"] == 1
    assert row["headroom_f16"] == pytest.approx(65504 / 40)
    assert row["headroom_bf16"] == pytest.approx(LIMITS["bfloat16"].largest / 40)
    assert row["outlier_ratio"] == pytest.approx(40.0)


def test_activations_that_are_all_lost_have_no_headroom(tmp_path):
    row = activation_health(saved_stats(tmp_path / "s", torch.full((3, 4), torch.nan))).iloc[0]
    assert row["nonfinite_tokens"] == row["tokens"] == 3
    assert np.isnan(row["absmax"]) and np.isnan(row["headroom_f16"])


def write_file(folder, entries, data, pad=0):
    """Write a folder of one file by hand; `pad` spaces in the header move the data."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    text = json.dumps(entries).encode() + b" " * pad
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if isinstance(data, int):
            file.truncate(8 + len(text) + data)
        else:
            file.write(data)
    return open_checkpoint(folder)


def entry(dtype, shape, stop):
    return {"a.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, stop]}}


@pytest.mark.parametrize("pad", [0, 1, 2, 3])
def test_data_may_begin_at_any_byte(tmp_path, pad):
    tensor = wide(torch.bfloat16, (40, 64))
    data = tensor.view(torch.uint8).numpy().tobytes()
    ckpt = write_file(tmp_path / "m", entry("BF16", (40, 64), len(data)), data, pad)
    row = health(ckpt, group_size=16).iloc[0].to_dict()
    expected = tensor_health(tensor, name="a.weight", group_size=16)
    assert {key: row[key] for key in expected} == expected


def test_windows_and_pieces_add_up(tmp_path, monkeypatch):
    tensor = wide(torch.float16, (100, 64))
    data = tensor.view(torch.uint8).numpy().tobytes()
    ckpt = write_file(tmp_path / "m", entry("F16", (100, 64), len(data)), data)
    whole = health(ckpt, group_size=16)
    monkeypatch.setattr(pieces, "BYTES_AT_ONCE", 1024)
    monkeypatch.setattr(pieces, "WINDOW_BYTES", 3000)
    assert len(pieces.windows_of(ckpt.tensors["a.weight"], group_size=16)) > 4
    assert health(ckpt, group_size=16).equals(whole)


@pytest.mark.parametrize(("width", "group_size"), [(4096, 128), (4096 + 40, 128), (64, 7)])
def test_pieces_cover_a_tensor_once_and_cut_no_group(monkeypatch, width, group_size):
    monkeypatch.setattr(pieces, "BYTES_AT_ONCE", 2048)
    found = list(pieces.pieces_of((19, width), itemsize=2, group_size=group_size))
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == 19 * width
    assert all(piece.start % width % group_size == 0 for piece in found)


def test_a_scan_holds_no_tensor(tmp_path):
    nbytes = 1 << 27
    ckpt = write_file(tmp_path / "m", entry("BF16", (16384, 4096), nbytes), nbytes)
    tensor_health(torch.ones(2, 2))  # what is imported on the way
    tracemalloc.start()
    table = health(ckpt)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table["groups"][0] == 16384 * 32
    assert peak < nbytes / 4


def test_a_file_that_became_shorter_is_named(tmp_path):
    ckpt = write_file(tmp_path / "m", entry("BF16", (64, 64), 8192), 8192)
    with (tmp_path / "m" / "model.safetensors").open("rb+") as file:
        file.truncate(4000)
    with pytest.raises(FormatError, match=r"model\.safetensors: a\.weight .*shorter"):
        health(ckpt)


def test_float8_is_looked_at_as_it_would_be_widened():
    tensor = torch.tensor([[448.0, -0.5, 0.0, 2.0**-9]]).to(torch.float8_e4m3fn)
    row = tensor_health(tensor, group_size=2)
    assert (row["absmax"], row["smallest_nonzero"], row["dtype"]) == (
        448.0,
        2.0**-9,
        "float8_e4m3fn",
    )


def test_channels_that_stand_out_are_counted():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert tensor_health(weight)["outlier_channels"] == 0
    weight[:, [5, 70]] *= 30
    assert tensor_health(weight)["outlier_channels"] == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_of_groups_of_every_length(sign):
    for length in (1, 2, 4, 8, 16, 64, 128):
        ones = torch.full((6, length), 1.0 * sign).bfloat16()
        ones[1, -1] = -sign  # found at the end of the group only
        ones[2, -1] = 0.0
        ones[3, -1] = -0.0
        ones[4, -1] = torch.nan
        ones[5, -1] = sign * torch.inf
        expected = 2 if length > 1 else 3  # a lone number of the other sign has one sign too
        assert tensor_health(ones, group_size=length)["one_signed_groups"] == expected
