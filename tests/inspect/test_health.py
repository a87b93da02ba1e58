"""The health scan counts what a cast does, as the slow reference does."""

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect import health as room
from awqbench.inspect.health import activation_health, cast_thresholds, health, tensor_health
from awqbench.numerics import LIMITS, cast_figures, round_to
from awqbench.quantize.fold import Site
from awqbench.quantize.moments import Moments
from awqbench.quantize.stats import FORMAT, save_block, save_manifest

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
    monkeypatch.setattr(room, "_ELEMENTS_AT_ONCE", 100)
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
