"""Mixtures of experts: coverage, starved experts, forced routing, and one fold for a norm."""

import json

import numpy as np
import pytest
import torch
from tiny_experts import CONFIGS, N_EXPERTS, save_model

import awqbench as ab
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.model import BlockRunner
from awqbench.quantize.choices.dense import keeps_dense
from awqbench.quantize.choices.scales import ScaleChoice
from awqbench.quantize.choices.scales_shared import shared_scales, to_powers_of_two
from awqbench.quantize.choices.site import choose_site
from awqbench.quantize.folds.apply import Site, fold_scales, joined
from awqbench.quantize.folds.find import trace_sites
from awqbench.quantize.folds.prove import prove_folds
from awqbench.quantize.run.memory import block_statistics
from awqbench.quantize.run.stored_names import as_stored
from awqbench.quantize.search import block_weights, make_settings
from awqbench.quantize.statistics.chunk import Sketching
from awqbench.quantize.statistics.experts import (
    coverage_lines,
    coverage_of_run,
    expert_coverage,
    least_tokens,
    sketch_rows,
)
from awqbench.quantize.statistics.moments import Moments, SiteMoments

TOKENS = np.random.default_rng(0).integers(3, 128, (16, 16))
NEW_TEXT = torch.from_numpy(np.random.default_rng(1).integers(3, 128, (2, 16)))
UNREACHED = 3


class Case:
    """A saved model, and its statistics with real and with forced routing, made when asked."""

    def __init__(self, folder, architecture, **changes):
        self.folder = folder
        self.model = save_model(architecture, folder / "model", **changes)
        self.ckpt = open_checkpoint(folder / "model")
        self.runner = BlockRunner(self.ckpt)
        self._stats = {}

    def stats(self, *, forced=False):
        if forced not in self._stats:
            out = self.folder / f"stats-{forced}"
            self._stats[forced] = ab.calibrate(self.ckpt, TOKENS, out, route_all_experts=forced)
        return self._stats[forced]

    def quantized(self, *, forced=False, **settings):
        out = self.folder / "-".join(["quantized", str(forced), *map(str, settings.values())])
        stats = self.stats(forced=forced)
        record = ab.quantize(self.ckpt, out, stats=stats, group_size=32, **settings)
        return record, open_checkpoint(out)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def case(architecture, **changes):
        key = (architecture, *changes.items())
        if key not in made:
            made[key] = Case(tmp_path_factory.mktemp(architecture), architecture, **changes)
        return made[key]

    return case


def routed_tokens(model, layer):
    """Count each expert's tokens by what the router of transformers' own model says."""
    seen = []
    router = model.model.layers[layer].mlp.gate
    handle = router.register_forward_hook(lambda _m, _args, out: seen.append(out[2]))
    with torch.no_grad():
        model(torch.from_numpy(TOKENS))
    handle.remove()
    return torch.bincount(torch.cat(seen).ravel(), minlength=N_EXPERTS).tolist()


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_coverage_counts_what_the_router_says(architecture, cases):
    case = cases(architecture, unreached=UNREACHED)
    table = expert_coverage(case.stats())
    first = table[table.block == "model.layers.0"]
    assert first.tokens.tolist() == routed_tokens(case.model, 0)
    assert first.expert.tolist() == list(range(N_EXPERTS))
    assert first.tokens.sum() == 2 * TOKENS.size
    assert first.share.sum() == pytest.approx(1)
    assert set(first.expected_share) == {1 / N_EXPERTS}
    assert first.expert[first.starved].tolist() == [UNREACHED]
    assert len(table) == N_EXPERTS * (1 if architecture == "qwen3_moe" else 2)


def test_least_tokens_grow_with_the_width_and_are_never_none():
    assert [least_tokens(k) for k in (1, 32, 33, 2048)] == [1, 2, 3, 128]


def test_a_model_without_experts_has_no_coverage(tmp_path):
    stats = ab.calibrate("tiny", np.full((1, 8), 5), tmp_path / "stats")
    table = expert_coverage(stats)
    assert table.empty and "starved" in table
    assert coverage_lines(table) == []


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_an_unreached_expert_is_named_rounded_plainly_and_runs(architecture, cases):
    case = cases(architecture, unreached=UNREACHED)
    record, quantized = case.quantized(rounding="gptq")
    rows = {f"{row['block']}.{row['linear']}": row for row in record["linears"]}
    head = f"model.layers.0.mlp.experts.{UNREACHED}"
    for linear in ("gate_proj", "up_proj", "down_proj"):
        row = rows[f"{head}.{linear}"]
        assert row["alarm"].startswith(
            f"rounded plainly: 0 calibration tokens reached expert {UNREACHED}"
        )
        assert row["tokens"] == 0 and row["clipped_groups"] == 0
        assert "plainly" not in rows[f"model.layers.0.mlp.experts.0.{linear}"]["alarm"]
    assert f"model.layers.0 expert {UNREACHED}" in record["experts"]["starved"]
    lines = coverage_lines(coverage_of_run(record["linears"]))
    assert lines[0] == f"model.layers.0: experts with too few calibration tokens: {UNREACHED} (0)"
    assert f"of {len(record['experts']['coverage'])} experts" in lines[-1]

    # Its down projection has no scales either: the codes are those of plain rounding.
    names = {"qwen3_moe": ("mlp", "down_proj"), "mixtral": ("block_sparse_moe", "w2")}
    home, down = names[architecture]
    stored = f"model.layers.0.{home}.experts.{UNREACHED}.{down}"
    plain = ab.quantize_weight(case.ckpt.read(f"{stored}.weight"), 4, 32, scale_dtype="float16")
    np.testing.assert_array_equal(quantized.linear(stored).codes, plain.codes)
    other = stored.replace(f"experts.{UNREACHED}", "experts.0")
    plain = ab.quantize_weight(case.ckpt.read(f"{other}.weight"), 4, 32, scale_dtype="float16")
    assert (quantized.linear(other).codes != plain.codes).any()

    model = ab.load_quantized(quantized.path, dtype="float32")
    with torch.no_grad():
        assert model(NEW_TEXT).logits.isfinite().all()
        assert model.generate(NEW_TEXT[:1], max_new_tokens=2, do_sample=False).shape[1] == 18


def test_an_expert_of_few_tokens_is_plain_and_keeps_the_shared_scales():
    moments = Moments(64)
    moments.add(torch.randn(3, 64))  # 4 are needed
    weights = {"mlp.experts.1.up_proj": torch.randn(8, 64)}
    scales = ScaleChoice(torch.full((64,), 2.0), 0.5, np.array([np.nan, 0.5]), np.array([2.0, 1.0]))
    settings = make_settings(None, group_size=32)

    def choose(name):
        site = Site(name, tuple(weights), 64)
        few = SiteMoments(moments.tensors())
        return choose_site(site, few, weights, settings, name=name, scales=scales)

    starved = choose("mlp.experts.1.up_proj")
    assert starved.is_plain and not starved.clips and starved.scales is None
    assert torch.equal(starved.channel_scales, scales.channel_scales)
    assert choose("mlp.up_proj").clips  # no expert: searched as before
    moments.add(torch.randn(1, 64))
    assert choose("mlp.experts.1.up_proj").clips


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_forced_routing_reaches_all_and_changes_no_output(architecture, cases):
    case = cases(architecture, unreached=UNREACHED)
    real, forced = case.stats(), case.stats(forced=True)
    table = expert_coverage(forced)
    assert set(table.tokens) == {TOKENS.size} and not table.starved.any()
    # What enters block 1 is what entered it before, to the last bit.
    for before, after in zip(real.block(1)[:2], forced.block(1)[:2], strict=True):
        assert torch.equal(before.moments.gram(), after.moments.gram())
    record, _ = case.quantized(forced=True)
    assert record["experts"]["starved"] == []
    assert not [row for row in record["linears"] if "plainly" in row["alarm"]]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_norm_folds_into_router_and_all_experts(architecture, cases):
    runner = cases(architecture, unreached=UNREACHED).runner
    sites = trace_sites(runner)
    norm = [site for site in sites[0] if site.prev_op == "post_attention_layernorm"]
    shared = ["mlp.shared_expert.gate_proj"] if architecture == "qwen2_moe" else []
    experts = [f"mlp.experts.{i}.gate_proj" for i in range(N_EXPERTS)]
    assert [site.name for site in norm] == shared + experts
    assert {site.shares for site in norm} == {norm[0].name}
    assert all(site.readers == ("mlp.gate.weight",) for site in norm)
    assert all(site.prev_op for site in sites[0])
    linears = [m for m in runner.linear_shapes() if m.startswith("model.layers.0.")]
    found = [f"model.layers.0.{path}" for site in sites[0] for path in site.linears]
    assert sorted(found) == sorted(linears)
    if shared:
        assert "mlp.shared_expert_gate" in norm[0].linears
    proof = prove_folds(runner, sites, seed=5)
    assert (proof.difference < 1e-5).all()
    assert (proof.control > 1e-3).all()
    # Without the router, or without one expert that no token reaches, it does not hold.
    no_router = [[site._replace(readers=()) for site in of_block] for of_block in sites]
    assert prove_folds(runner, no_router, seed=5).difference.max() > 1e-2
    left_out = [[s for s in of_block if s.name != experts[UNREACHED]] for of_block in sites]
    assert prove_folds(runner, left_out, seed=5).difference.max() > 1e-3


def test_routing_is_the_same_to_the_last_bit_after_folding_in_bfloat16(cases):
    case = cases("mixtral", outliers=True, dtype="bfloat16")
    unit = next(u for u in joined(trace_sites(case.runner)[0]) if u.readers)
    scales = np.random.default_rng(2).uniform(0.1, 20.0, unit.in_features)
    exact = to_powers_of_two(torch.from_numpy(scales)).numpy()
    state = case.runner.embed(torch.from_numpy(TOKENS))

    def router_logits(scales):
        block = case.runner.load_block(0)
        tensors = dict(block.named_parameters())
        fold_scales(tensors, unit, scales)
        for name, tensor in tensors.items():
            block.get_parameter(name).data = tensor.to(torch.bfloat16)
        seen = []
        block.mlp.gate.register_forward_hook(lambda _m, _args, out: seen.append(out[0]))
        case.runner.run_block(block, 0, state)
        return seen[0]

    before = router_logits(np.ones(unit.in_features))
    assert torch.equal(router_logits(exact), before)
    assert not torch.equal(router_logits(scales), before)  # what other scales do


def test_shared_scales_have_the_least_error_summed_over_experts(cases):
    case = cases("qwen2_moe", outliers=True)
    records = case.stats().block(0)
    settings = make_settings(None, bits=3, group_size=32, scale_dtype="float32", max_rows=9999)
    weights = block_weights(case.ckpt, records, "model.layers.0")
    weights.pop("mlp.shared_expert_gate")
    chosen = shared_scales(records, weights, settings, name="model.layers.0")
    assert len(chosen) == N_EXPERTS + 1
    choice = chosen["mlp.experts.0.gate_proj"]
    assert all(other is choice for other in chosen.values())
    assert choice.channel_scales.unique().numel() > 1
    assert torch.equal(choice.channel_scales.log2().round(), choice.channel_scales.log2())

    def loss(scales):
        total = 0.0
        for site, moments in records:
            for path in site.linears if site.name in chosen else ():
                if path in weights:
                    weight = weights[path].double().numpy()
                    packed = ab.quantize_weight(
                        (weight * scales).astype(np.float32), 3, 32, scale_dtype="float32"
                    )
                    error = packed.dequantize() / scales - weight
                    total += np.sum((error @ moments.gram().double().numpy()) * error)
        return total

    best = int(np.nanargmin(choice.losses))
    assert best > 0  # with such outliers, no scales is not the best
    found, unscaled = loss(choice.channel_scales.numpy()), loss(np.ones(64))
    assert choice.losses[best] == pytest.approx(found, rel=5e-3)
    assert choice.losses[0] == pytest.approx(unscaled, rel=5e-3)


def test_no_scales_are_shared_where_none_are_searched(cases):
    case = cases("mixtral", unreached=UNREACHED)
    records = case.stats().block(0)
    weights = block_weights(case.ckpt, records, "model.layers.0")
    unscaled = make_settings(None, scales="none", group_size=32)
    assert shared_scales(records, weights, unscaled, name="b") == {}
    assert shared_scales(records, {}, make_settings(None, group_size=32), name="b") == {}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_eight_bits_are_close_to_the_original(architecture, cases):
    """Scales are folded on the way: a wrong fold would show in every token."""
    case = cases(architecture, outliers=True)
    settings = dict(bits=8, layout="compressed-tensors", scale_dtype="float32")
    record, quantized = case.quantized(**settings)
    table = [row for row in record["linears"] if "experts.0.gate" in row["linear"]]
    assert table[0]["scale_range"] >= 4
    model = ab.load_quantized(quantized.path, dtype="float32")
    with torch.no_grad():
        expected = case.model(NEW_TEXT).logits
        change = (model(NEW_TEXT).logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    # A token near the border of two experts may go to the other: hence not all tokens.
    assert change.median() < 0.03


@pytest.mark.parametrize("layout", ["awq-gemm", "gptq-v2", "compressed-tensors"])
def test_routers_and_tiny_gates_stay_dense_in_every_layout(layout, cases):
    case = cases("qwen2_moe", outliers=True)
    record, quantized = case.quantized(layout=layout)
    reasons = record["kept_dense"]
    assert "1 output channel" in reasons["model.layers.0.mlp.shared_expert_gate"]
    assert "router" in reasons["model.layers.1.mlp.gate"] and len(reasons) == 4
    section = json.dumps(quantized.config["quantization_config"]).replace("\\", "")
    for name in ("mlp.gate", "mlp.shared_expert_gate"):
        assert name in section
        assert f"model.layers.0.{name}.weight" in quantized.tensors
    assert "model.layers.0.mlp.shared_expert.gate_proj" in quantized.quantized_linears()


def test_a_router_does_not_take_dense_mlps_along(cases):
    """Readers look for the listed names inside of module names."""
    _, quantized = cases("qwen3_moe", unreached=UNREACHED).quantized(clip=False)
    listed = quantized.config["quantization_config"]["modules_to_not_convert"]
    assert listed == ["model.layers.0.mlp.gate"]
    packed = quantized.quantized_linears()
    assert "model.layers.1.mlp.gate_proj" in packed
    assert not [name for name in packed if any(part in name for part in listed)]


def test_what_stays_dense():
    assert keeps_dense("mlp.shared_expert_gate", (1, 64), "gptq")
    assert keeps_dense("mlp.gate", (8, 64)) and keeps_dense("block_sparse_moe.gate", (16, 64))
    assert not keeps_dense("mlp.gate", (64, 64))  # an MLP's own gate
    assert not keeps_dense("mlp.gate_proj", (8, 64))
    assert not keeps_dense("mlp.up_proj", (4304, 1152), "awq-gemm")


def widths(count, *of_each):
    """Return K by site of a block with so many experts."""
    names = {f"mlp.experts.{i}.{k}": k for i in range(count) for k in of_each}
    return names | {"mlp.shared_expert.up_proj": 2048}


def test_wide_experts_are_sketched_only_in_large_mixtures():
    large = sketch_rows(widths(128, 2048, 768), 1024)
    assert large["mlp.experts.0.2048"] == large["mlp.experts.127.2048"] == 512
    assert large["mlp.experts.0.768"] is None
    assert large["mlp.shared_expert.up_proj"] is None
    assert set(sketch_rows(widths(8, 2048, 768), 1024).values()) == {None}
    mixtral = sketch_rows(widths(8, 4096, 14336), 1024)
    assert set(mixtral.values()) == {1024, None}


def test_the_memory_plan_knows_that_experts_are_sketched():
    """Told and kept bytes agree; H of one gate_proj is made of its sketch in the search."""
    kept, rebuilt = block_statistics(widths(128, 2048, 768), Sketching())

    def nbytes(k, rows=None):
        return sum(t.nbytes for t in Moments(k, sketch_rows=rows).tensors().values())

    expected = 128 * (nbytes(2048, 512) + nbytes(768)) + nbytes(2048)
    assert kept == pytest.approx(expected, rel=0.02)
    assert rebuilt == 4 * 2048**2
    assert block_statistics(widths(8, 2048, 768), Sketching())[1] == 0


def test_names_of_a_file_that_calls_blocks_otherwise_stay():
    names = {"norm.weight": "h.0.norm.weight", "mlp.up.weight": "h.0.ff.w3.weight", "a": "other.a"}
    tensors = {"norm.weight": 1, "mlp.up.scales": 2, "mlp.up.bias": 3, "a": 4, "new": 5}
    expected = {"norm.weight": 1, "ff.w3.scales": 2, "ff.w3.bias": 3, "a": 4, "new": 5}
    assert as_stored(tensors, names, "h.0") == expected
