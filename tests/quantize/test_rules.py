"""Rules for single linears: read, checked, searched, written, read back and run."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import AlignmentError, FormatError, ParameterError
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.convert import convert
from awqbench.quantize.choices.rule_checks import check_rules, check_rules_held, merged_linears
from awqbench.quantize.rules import Rule, make_rules, parse_rule
from awqbench.quantize.search import make_settings
from awqbench.quantize.settings import Settings

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))
RULES = (r"layers\.0\.mlp\.(gate|up)_proj=bits:3", r"down_proj=bits:8,group_size:16", "o_proj=skip")
LINEARS = [
    f"model.layers.{i}.{path}"
    for i in range(2)
    for path in (
        *(f"self_attn.{p}_proj" for p in "qkvo"),
        *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS[:2])).logits.float()


rules_of_any_kind = st.builds(
    Rule,
    st.text(st.sampled_from("a0._-=:,|"), min_size=1),
    skip=st.just(False),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, -1, 32, 128]),
    zero_point=st.sampled_from([None, True, False]),
)


@given(rules_of_any_kind)
def test_a_rule_survives_text_and_json(rule):
    assert parse_rule(str(rule)) == rule
    assert make_rules(json.loads(json.dumps([rule.as_dict()]))) == (rule,)
    skip = Rule(rule.pattern, skip=True)
    assert parse_rule(str(skip)) == skip
    assert make_rules([skip.as_dict()]) == make_rules([(rule.pattern, "skip")]) == (skip,)


def test_settings_with_rules_survive_json():
    settings = Settings(rules=RULES)
    again = make_settings(None, **json.loads(json.dumps(settings.as_dict())))
    assert again == settings and hash(again) == hash(settings)
    assert Settings().as_dict()["rules"] == []


def test_the_first_rule_that_matches_counts():
    settings = Settings(rules=(r"layers\.0\.=skip", "down_proj=bits:8", "proj=bits:3"))
    names = [f"model.layers.{i}.mlp.{p}_proj" for i in (0, 1) for p in ("down", "up")]
    assert [settings.converts(name) for name in names] == [False, False, True, True]
    assert [settings.for_linear(name).bits for name in names[2:]] == [8, 3]
    assert settings.for_linear(names[2]).rules == ()
    assert settings.for_linear("lm_head") == Settings()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("down_proj", "is not PATTERN=CHANGES"),
        ("=skip", "is not PATTERN=CHANGES"),
        ("down_proj=bits:eight", "says 'bits:eight'"),
        ("down_proj=bit:8", "says 'bit:8'"),
        ("down_proj=zero_point:maybe", "says 'zero_point:maybe'"),
        ("(down=skip", "no regular expression"),
        ("down_proj=bits:9", "the rule 'down_proj=bits:9': bits is 9"),
        ("down_proj=group_size:0", "group_size is 0"),
        (("down_proj", {}), "changes nothing"),
        (("down_proj", {"bits": 4, "skip": True}), "both skips and changes"),
        (("down_proj", {"rounding": "gptq"}), "it can change bits, group_size, zero_point"),
        (("", "skip"), "the pattern of a rule is ''"),
        (7, "7 is no rule"),
    ],
)
def test_bad_rules_are_refused(rule, text):
    with pytest.raises(ParameterError, match=text):
        Settings(rules=(rule,))


def test_a_pattern_that_never_ends_is_stopped():
    with pytest.raises(ParameterError, match="takes too long"):
        Settings(rules=("(a|a)*$=skip",)).converts("a" * 60 + "b")


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (("lm_head=skip",), "rule 1, 'lm_head=skip', matches none of the 14 linears"),
        (("mlp=bits:8", "down_proj=skip"), "rule 2, .* matches 2 linears, and earlier rules take"),
        (("q_proj=bits:8",), "q_proj 8 bits, groups of 128 and .*k_proj 4 bits.*same precision"),
        (("v_proj=skip",), r"v_proj full precision.*\(k_proj\|q_proj\|v_proj\)"),
        (("up_proj=zero_point:false",), "groups of 128, symmetric"),
        (("gate_proj=group_size:-1", "up_proj=group_size:64"), "whole rows and .* groups of 64"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, text):
    with pytest.raises(ParameterError, match=text):
        check_rules(Settings(rules=rules), LINEARS)


def test_rules_that_can_be_meant_pass():
    check_rules(Settings(rules=RULES), LINEARS)
    # AutoAWQ's own list may part neighbours, as it always could.
    check_rules(Settings(modules_to_not_convert=("v_proj",), rules=("down_proj=bits:8",)), LINEARS)


def test_linears_that_engines_merge():
    experts = [f"l.0.mlp.experts.{i}.{p}_proj" for i in (0, 1) for p in ("gate", "up", "down")]
    mixtral = [f"l.0.moe.{p}" for p in ("w1", "w2", "w3")]
    qwen = [f"h.0.mlp.{p}" for p in ("w1", "w2", "c_proj")]
    alone = ["l.0.mlp.gate_up_proj", "h.0.attn.c_attn"]
    shared = [f"l.0.mlp.shared_expert.{p}_proj" for p in ("gate", "up", "down")]
    assert merged_linears(experts + mixtral + qwen + alone + shared) == [
        tuple(experts),
        ("l.0.moe.w1", "l.0.moe.w3"),
        ("l.0.moe.w2",),
        ("h.0.mlp.w1", "h.0.mlp.w2"),
        ("h.0.mlp.c_proj",),
        *((name,) for name in alone),
        tuple(shared[:2]),
        (shared[2],),
    ]


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (Settings(rules=("down_proj=group_size:64",)), FormatError, "one width and group size"),
        (Settings(rules=("down_proj=bits:8",)), FormatError, r"by the rule 'down_proj=bits:8'"),
        (Settings(layout="gptq-v2", rules=("down_proj=bits:5",)), FormatError, "holds 2, 3, 4, 8"),
        (Settings(rules=("proj=skip",)), ParameterError, "every linear"),
    ],
)
def test_layouts_refuse_what_they_cannot_hold(settings, error, text):
    with pytest.raises(error, match=text):
        check_rules_held(settings, LINEARS)


def test_search_follows_the_rules(folder, stats):
    table = ab.search(folder, stats, group_size=32, rules=RULES).table.set_index(
        ["block", "linear"]
    )
    assert len(table) == 12
    assert table.loc[("model.layers.0", "mlp.up_proj"), "bits"] == 3
    assert table.loc[("model.layers.1", "mlp.up_proj"), "bits"] == 4
    wide = table.loc[("model.layers.1", "mlp.down_proj")]
    assert (wide["bits"], wide["group_size"]) == (8, 16)
    plain = ab.search(folder, stats, group_size=32).table.set_index(["block", "linear"])
    down, up = ("model.layers.0", "mlp.down_proj"), ("model.layers.1", "mlp.up_proj")
    assert table.loc[down, "output_error"] < plain.loc[down, "output_error"] / 50
    assert table.loc[up, "output_error"] == plain.loc[up, "output_error"]
    with pytest.raises(ParameterError, match="one setting for all"):
        ab.search(folder, stats, group_size=32, rules=RULES, objective="block", tokens=TOKENS)
    with pytest.raises(AlignmentError, match="down_proj"):
        ab.search(folder, stats, group_size=32, rules=("down_proj=group_size:64",))


def test_linears_with_one_input_and_other_bits_share_their_scales(tmp_path):
    """In Falcon attention and MLP read the same norm, and no engine merges them."""
    source = save_tiny_model("falcon", tmp_path / "model")
    stats = ab.calibrate(source, TOKENS, tmp_path / "stats")
    rules = ("query_key_value=bits:8",)
    mixed, plain = (ab.search(source, stats, bits=3, group_size=16, rules=r) for r in (rules, ()))
    assert any(len(record.site.linears) == 2 for record in stats.block(0))
    wide = mixed.table.linear == "self_attention.query_key_value"
    assert mixed.table.bits[wide].tolist() == [8, 8]
    assert (mixed.table.output_error[wide] < plain.table.output_error[wide] / 50).all()
    # The scales are those that serve the linears of fewest bits best.
    alone = ab.search(source, stats, bits=3, group_size=16, rules=("query_key_value=skip",))
    for key, choice in alone.choices.items():
        assert torch.equal(choice.channel_scales, mixed.choices[key].channel_scales)
    up = mixed.table.linear == "mlp.dense_h_to_4h"
    assert (
        mixed.table.output_error[up].tolist()
        == alone.table.output_error[alone.table.linear == "mlp.dense_h_to_4h"].tolist()
    )
    assert set(mixed.choices) == set(plain.choices)
    assert all(len(c.clips) == len(plain.choices[k].clips) for k, c in mixed.choices.items())


@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq-v2"])
def test_a_folder_of_mixed_linears_is_written_read_and_run(folder, stats, tmp_path, layout):
    record = ab.quantize(
        folder, tmp_path / "out", stats=stats, group_size=32, layout=layout, rules=RULES
    )
    assert record["settings"]["rules"] == [rule.as_dict() for rule in make_rules(RULES)]
    ckpt = ab.open_checkpoint(tmp_path / "out")
    assert len(ckpt.quantized_linears()) == 12
    settings = Settings(group_size=32, rules=RULES)
    for name in ckpt.quantized_linears():
        packed, own = ckpt.linear(name), settings.for_linear(name)
        assert ckpt.quantization.scheme(name) == Scheme(own.bits, own.group_size, True)
        assert (packed.bits, packed.group_size) == (own.bits, own.group_size)
    assert "model.layers.1.self_attn.o_proj.weight" in ckpt.tensors
    model, full = ab.load_quantized(tmp_path / "out", dtype=torch.float32), ab.load_model(folder)
    reference = logits(full)
    got = (logits(model) - reference).norm() / reference.norm()
    with ab.fake_quantized(full, folder, stats, group_size=32, rules=RULES):
        promised = (logits(full) - reference).norm() / reference.norm()
    assert got == pytest.approx(float(promised), rel=0.15)


def test_mixed_folders_convert_to_what_holds_them(folder, stats, tmp_path):
    ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32, layout="gptq-v2", rules=RULES)
    there = convert(tmp_path / "out", tmp_path / "there", "compressed-tensors").out
    back = convert(there, tmp_path / "back", "gptq-v2").out
    folders = [ab.open_checkpoint(f) for f in (tmp_path / "out", there, back)]
    for name in folders[0].quantized_linears():
        first, *others = (ckpt.linear(name) for ckpt in folders)
        for other in others:
            assert np.array_equal(first.codes, other.codes)
            assert np.array_equal(first.scales, other.scales)
            assert np.array_equal(first.zeros, other.zeros)
    with pytest.raises(FormatError, match="8 bits.*a GPTQ or compressed-tensors"):
        convert(there, tmp_path / "awq", "awq-gemm")
    assert not (tmp_path / "awq").exists()


def test_the_awq_layout_takes_rules_that_skip(folder, stats, tmp_path):
    ab.quantize(
        folder, tmp_path / "out", stats=stats, group_size=32, rules=(r"layers\.0\.mlp=skip",)
    )
    ckpt = ab.open_checkpoint(tmp_path / "out")
    assert len(ckpt.quantized_linears()) == 11
    listed = ckpt.config["quantization_config"]["modules_to_not_convert"]
    assert sorted(listed) == [f"model.layers.0.mlp.{p}_proj" for p in ("down", "gate", "up")]


def test_rules_a_layout_cannot_hold_stop_before_any_work(folder, stats, tmp_path):
    for rules, error in ((RULES, FormatError), (("lm_head=skip",), ParameterError)):
        with pytest.raises(error):
            ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32, rules=rules)
    assert list(tmp_path.iterdir()) == []
