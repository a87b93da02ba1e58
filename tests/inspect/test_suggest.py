"""Suggested bits: the sizes are exact, the assignment obeys engines and limits."""

import json

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model
from typer.testing import CliRunner

import awqbench as ab
from awqbench.cli import app
from awqbench.errors import AlignmentError, FormatError, ParameterError
from awqbench.formats.config.section import inside
from awqbench.inspect.bits.choice_errors import (
    added_energies,
    choice_errors,
    make_choices,
    output_energies,
)
from awqbench.inspect.bits.suggest import Predictor, suggest_bits
from awqbench.quantize.rules import patterns_of
from awqbench.quantize.search import block_weights
from awqbench.quantize.settings import Settings

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))
CHOICES = ((3, 32), (4, 32), (4, 16), (8, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


@pytest.fixture(scope="module")
def predictor(folder, stats):
    settings = Settings(layout="compressed-tensors")
    return Predictor(ab.open_checkpoint(folder), stats, (*CHOICES, "skip"), settings)


@pytest.mark.parametrize(("layout", "bits"), [("compressed-tensors", 5.2), ("gptq-v2", 6.5)])
def test_the_written_folder_has_the_predicted_bytes_and_bits(folder, stats, tmp_path, layout, bits):
    found = suggest_bits(
        folder, stats, bits_per_weight=bits, choices=(*CHOICES, "skip"), layout=layout
    )
    assert found.table["bits"].nunique(dropna=False) > 1
    ab.quantize(folder, tmp_path / "out", stats=stats, settings=found.settings)
    ckpt = ab.open_checkpoint(tmp_path / "out")
    assert ckpt.nbytes == found.weight_bytes <= found.limit_bytes
    for row in found.table.itertuples():
        if np.isnan(row.bits):
            assert f"{row.linear}.weight" in ckpt.tensors
        else:
            packed = ckpt.linear(row.linear)
            assert (packed.bits, packed.group_size) == (row.bits, row.group_size)


def test_linears_that_engines_merge_get_the_same(predictor):
    for bits in (3.7, 4.4, 6.0, 9.0):
        table = predictor.suggest(bits_per_weight=bits).table
        key = table["linear"].str.replace("[qkv]_proj|gate_proj|up_proj", "merged", regex=True)
        assert (table.groupby(key)[["bits", "group_size"]].nunique(dropna=False) == 1).all(
            axis=None
        )


def test_more_bytes_never_lose_more_and_mixing_never_loses_to_uniform(predictor):
    found = predictor.suggest(bits_per_weight=5)
    assert (np.diff(found.frontier["error"]) <= 0).all()
    assert found.error == found.bound
    assert found.table["share"].sum() == pytest.approx(1)
    assert (found.table["output_error"] * found.table["impact"]).sum() == pytest.approx(found.error)
    for row in found.uniform.itertuples():
        assert predictor.suggest(row.weight_bytes).error <= row.error * (1 + 1e-12)
    dense = predictor.suggest(predictor.kept_bytes + 2 * predictor.n_weights)
    assert dense.error == 0 and dense.table["bits"].isna().all()
    assert dense.bits_per_weight == 16


def test_errors_are_those_of_the_search(folder, stats):
    settings = Settings(layout="compressed-tensors", modules_to_not_convert=("o_proj",))
    choices = make_choices([(4, 32)], settings)
    for with_scales, scales in ((False, "none"), (True, "awq")):
        table = choice_errors(
            ab.open_checkpoint(folder), stats, choices, settings, with_scales=with_scales
        )
        expected = ab.search(folder, stats, settings, group_size=32, scales=scales).table
        names = expected["block"] + "." + expected["linear"]
        assert table["linear"].tolist() == names.tolist() and len(table) == 12
        np.testing.assert_array_equal(table["output_error"], expected["output_error"])


def test_an_impact_is_the_share_of_what_its_module_adds(folder, stats, predictor):
    records = stats.block(0)
    order = [path for record in records for path in record.site.linears]
    energies = {path: float(i + 1) for i, path in enumerate(order)}
    added, stream = added_energies(records, energies, 10.0)
    out, down = energies["self_attn.o_proj"], energies["mlp.down_proj"]
    assert stream == 10 + out + down
    for path in order:
        expected = (out, 10 + out) if "attn" in path else (down, stream)
        assert added[path] == expected
    assert added["mlp.up_proj"].impact(4 * stream) == down / (2 * stream)
    assert added_energies(records, dict.fromkeys(order, 0.0), 0.0)[0]["mlp.up_proj"].impact(0) == 0
    impact = predictor.errors.groupby("linear")["impact"].first()
    assert impact.between(0, 1).all()
    # The last module's stream is the end of all.
    found = {}
    for i in range(stats.n_blocks):
        weights = block_weights(ab.open_checkpoint(folder), stats.block(i), stats.block_name(i))
        for path, energy in output_energies(stats.block(i), weights).items():
            found[f"{stats.block_name(i)}.{path}"] = energy
    end = sum(e for name, e in found.items() if name.endswith(("o_proj", "down_proj")))
    name = "model.layers.1.mlp.down_proj"
    assert impact[name] == pytest.approx(found[name] / end)


def test_patterns_match_their_linears_alone(predictor):
    found = predictor.suggest(bits_per_weight=5)
    for row in found.table.itertuples():
        matching = [rule for rule in found.rules if rule.matches(row.linear)]
        assert len(matching) == 1
        assert matching[0].skip if np.isnan(row.bits) else matching[0].bits == row.bits
    assert patterns_of(["a.1.b.c", "a.10.b.c"]) == [r"^a\.(?:1|10)\.(?:b\.c)$"]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({}, ParameterError, "give one limit"),
        ({"bits_per_weight": 4, "target_bytes": 9}, ParameterError, "give one limit"),
        ({"bits_per_weight": float("nan")}, ParameterError, "must be positive"),
        ({"target_bytes": "much"}, ParameterError, "target_bytes is 'much'"),
        ({"target_bytes": 1000}, ParameterError, r"the limit is 1,000 bytes.*\(3\.\d+ bits a wei"),
        ({"bits_per_weight": 4, "choices": ()}, ParameterError, "choices are"),
        ({"bits_per_weight": 4, "choices": ("skip",)}, ParameterError, "choices are"),
        ({"bits_per_weight": 4, "choices": ((4, 32), (4, 32))}, ParameterError, "each once"),
        ({"bits_per_weight": 4, "choices": (4, 3)}, ParameterError, "4 is no choice"),
        ({"bits_per_weight": 4, "choices": ((9, 32),)}, ParameterError, "bits is 9"),
        ({"bits_per_weight": 4, "choices": ((4, 128),)}, AlignmentError, "not a multiple of 128"),
        ({"bits_per_weight": 4, "layout": "awq-gemm"}, FormatError, "AutoAWQ"),
        ({"bits_per_weight": 4, "layout": "gptq"}, FormatError, "gptq-v2"),
        ({"bits_per_weight": 4, "rules": ("q=bits:4",)}, ParameterError, "'q=bits:4' sets what"),
        ({"bits_per_weight": 4, "rules": ("proj=skip",)}, ParameterError, "nothing to suggest"),
    ],
)
def test_what_cannot_be_suggested_is_refused(folder, stats, given, error, text):
    with pytest.raises(error, match=text):
        suggest_bits(folder, stats, **({"choices": CHOICES} | given))


def test_a_choice_that_one_linear_does_not_allow_is_left_out_for_its_group(folder, stats):
    found = suggest_bits(folder, stats, bits_per_weight=4.6, choices=((4, 64), (4, 32)))
    down = found.table["linear"].map(inside) == "mlp.down_proj"  # 96 input channels
    assert found.table["group_size"][down].tolist() == [32, 32]
    assert found.uniform["group_size"].tolist() == [32]


def test_command(folder, stats):
    words = ["suggest", str(folder), "--stats", str(stats.path)]
    words += [
        "--bits-per-weight",
        "4.4",
        "--choice",
        "3:32",
        "--choice",
        "4:32",
        "--choice",
        "skip",
    ]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "bits a weight" in shown.output and "--rule" in shown.output
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    found = suggest_bits(folder, stats, bits_per_weight=4.4, choices=((3, 32), (4, 32), "skip"))
    assert facts["weight_bytes"] == found.weight_bytes
    assert Settings(rules=facts["rules"]).rules == found.rules
    assert len(facts["linears"]) == 14 and str(found).startswith(found.summary())
    assert "<table" in found._repr_html_()
