"""Folds are found in every architecture, hold on logits, and are refused where they must be."""

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, save_tiny_model
from torch import nn

from awqbench.errors import ParameterError, TraceError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.model import BlockRunner
from awqbench.quantize.folds.apply import fold_scales, folded, share_scales
from awqbench.quantize.folds.experts import loose_weights
from awqbench.quantize.folds.find import (
    SiteFinder,
    find_sites,
    fold_report,
    trace_sites,
)
from awqbench.quantize.folds.prove import prove_folds
from awqbench.quantize.folds.trace import Probe, block_probe

# Hidden 64, intermediate 96, 4 heads of 16; two key-value heads where the config has them.
LLAMA = {
    "self_attn.q_proj": ("input_layernorm", "norm", 64),
    "self_attn.o_proj": ("self_attn.v_proj", "linear", 32),
    "mlp.gate_proj": ("post_attention_layernorm", "norm", 64),
    "mlp.down_proj": ("mlp.up_proj", "linear", 96),
}
GLM = LLAMA | {"mlp.down_proj": ("mlp.gate_up_proj", "linear", 96)}
GLM["mlp.gate_up_proj"] = GLM.pop("mlp.gate_proj")
GEMMA = LLAMA | {
    "self_attn.q_proj": ("input_layernorm", "norm_plus_one", 64),
    "mlp.gate_proj": ("post_attention_layernorm", "norm_plus_one", 64),
}
GEMMA2 = GEMMA | {"mlp.gate_proj": ("pre_feedforward_layernorm", "norm_plus_one", 64)}
NOTHING = (None, None, 0)
# prev_op, kind and number of independent scales of every site.
EXPECTED = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "phi3": {
        "self_attn.qkv_proj": ("input_layernorm", "norm", 64),
        "self_attn.o_proj": ("self_attn.qkv_proj", "linear", 32),
        "mlp.gate_up_proj": ("post_attention_layernorm", "norm", 64),
        "mlp.down_proj": ("mlp.gate_up_proj", "linear", 96),
    },
    "glm": GLM,
    "glm4": GLM,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA2,
    "olmo2": LLAMA | {"self_attn.q_proj": NOTHING, "mlp.gate_proj": NOTHING},
    "cohere": {k: v for k, v in LLAMA.items() if k != "mlp.gate_proj"},
    "gpt_neox": {
        "attention.query_key_value": ("input_layernorm", "norm", 64),
        "attention.dense": ("attention.query_key_value", "linear", 64),
        "mlp.dense_h_to_4h": ("post_attention_layernorm", "norm", 64),
        "mlp.dense_4h_to_h": NOTHING,
    },
    "falcon": {
        "self_attention.query_key_value": ("input_layernorm", "norm", 64),
        "self_attention.dense": ("self_attention.query_key_value", "linear", 16),
        "mlp.dense_4h_to_h": NOTHING,
    },
    "phi": {
        "self_attn.q_proj": ("input_layernorm", "norm", 64),
        "self_attn.dense": ("self_attn.v_proj", "linear", 64),
        "mlp.fc2": NOTHING,
    },
    "opt": {
        "self_attn.q_proj": ("self_attn_layer_norm", "norm", 64),
        "self_attn.out_proj": ("self_attn.v_proj", "linear", 64),
        "fc1": ("final_layer_norm", "norm", 64),
        "fc2": ("fc1", "linear", 96),
    },
}


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """Return a runner for an architecture, made once."""
    made = {}

    def runner(architecture):
        if architecture not in made:
            folder = save_tiny_model(architecture, tmp_path_factory.mktemp(architecture))
            made[architecture] = BlockRunner(open_checkpoint(folder))
        return made[architecture]

    return runner


def site_of(runner, name):
    return next(site for site in trace_sites(runner)[0] if site.name == name)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_sites_of_every_architecture(architecture, runners):
    sites = trace_sites(runners(architecture))
    for of_block in sites:
        report = fold_report(of_block).set_index("site")
        found = {
            name: (row.prev_op if row.foldable else None, row.kind if row.foldable else None)
            + (row.free,)
            for name, row in report.iterrows()
        }
        assert found == EXPECTED[architecture]
        assert all((site.reason == "") == (site.prev_op is not None) for site in of_block)
    block = runners(architecture).load_block(0)
    linears = sorted(n for n, m in block.named_modules() if isinstance(m, nn.Linear))
    assert linears == sorted(name for site in sites[0] for name in site.linears)
    assert loose_weights(block) == []


@pytest.mark.parametrize("architecture", CONFIGS)
def test_folds_hold_on_logits(architecture, runners):
    runner = runners(architecture)
    proof = prove_folds(runner, trace_sites(runner), seed=3)
    assert proof.block.tolist()[-1] == -1
    assert (proof.difference < 1e-5).all()
    assert (proof.control > 1e-2).all()


def test_a_wrong_fold_shows_in_the_proof(runners):
    runner = runners("llama")
    sites = trace_sites(runner)
    wrong = [[s._replace(source=np.roll(s.source, 1)) for s in of_block] for of_block in sites]
    assert (prove_folds(runner, wrong).difference > 1e-2).all()


def test_linears_share_a_site(runners):
    cohere = site_of(runners("cohere"), "self_attn.q_proj").linears
    attention = [f"self_attn.{x}_proj" for x in "qkv"]
    assert sorted(cohere) == sorted([*attention, "mlp.gate_proj", "mlp.up_proj"])
    assert sorted(site_of(runners("llama"), "self_attn.q_proj").linears) == sorted(attention)


def test_source_repeats_under_grouped_queries(runners):
    """Query heads 0 and 1 read value head 0; 2 and 3 read value head 1."""
    heads = np.arange(32).reshape(2, 1, 16)
    expected = np.repeat(heads, 2, axis=1).ravel()
    llama = site_of(runners("llama"), "self_attn.o_proj")
    np.testing.assert_array_equal(llama.source, expected)
    # In a fused projection values come after 64 rows of queries and 32 of keys.
    phi3 = site_of(runners("phi3"), "self_attn.o_proj")
    np.testing.assert_array_equal(phi3.source, 96 + expected)
    falcon = site_of(runners("falcon"), "self_attention.dense")
    np.testing.assert_array_equal(falcon.source, np.tile(np.arange(80, 96), 4))


def test_source_of_fused_projections(runners):
    for architecture in ("phi3", "glm4"):
        down = site_of(runners(architecture), "mlp.down_proj")
        np.testing.assert_array_equal(down.source, 96 + np.arange(96))
    # GPT-NeoX holds q, k, v of head 0, then of head 1, ...
    dense = site_of(runners("gpt_neox"), "attention.dense")
    expected = (np.arange(4)[:, None] * 48 + 32 + np.arange(16)).ravel()
    np.testing.assert_array_equal(dense.source, expected)


@pytest.mark.parametrize(
    ("architecture", "name", "words"),
    [
        ("olmo2", "self_attn.q_proj", "no norm before.*block's input.*post-norm"),
        ("olmo2", "mlp.gate_proj", "no norm before.*post_attention_layernorm.*post-norm"),
        ("gpt_neox", "mlp.dense_4h_to_h", "GELU.*between mlp.dense_h_to_4h and.*not linear"),
        ("falcon", "mlp.dense_4h_to_h", "GELU.*between mlp.dense_h_to_4h and.*not linear"),
        ("phi", "mlp.fc2", "GELU.*between mlp.fc1 and mlp.fc2 is not linear"),
    ],
)
def test_reason_is_said(architecture, name, words, runners):
    site = site_of(runners(architecture), name)
    with pytest.raises(ParameterError, match=words):
        fold_scales({}, site, np.ones(site.in_features))


def test_bfloat16_model_is_probed_in_float32(tmp_path):
    runner = BlockRunner(open_checkpoint(save_tiny_model("gemma2", tmp_path, dtype="bfloat16")))
    block = runner.load_block(1)
    report = fold_report(SiteFinder(runner).sites(1, block)).set_index("site")
    assert report.prev_op.to_dict() == {k: v[0] for k, v in GEMMA2.items()}
    with pytest.raises(TraceError, match="bfloat16"):
        find_sites(block, block_probe(runner, 1))


def test_probing_leaves_the_block_as_it_was(runners):
    runner = runners("phi3")
    block = runner.load_block(0)
    before = {name: p.clone() for name, p in block.named_parameters()}
    find_sites(block, block_probe(runner, 0))
    assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())
    hooked = [m for m in block.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert hooked == []


def test_silent_channels_keep_scale_one(runners):
    runner = runners("llama")
    block = runner.load_block(0)
    block.mlp.up_proj.weight.data[[3, 7]] = 0
    block.mlp.up_proj.bias.data[[3, 7]] = 0
    probe = block_probe(runner, 0)
    down = next(s for s in find_sites(block, probe) if s.name == "mlp.down_proj")
    assert np.flatnonzero(down.source < 0).tolist() == [3, 7]
    assert down.reason.startswith("2 of 96 channels keep scale 1: 2 carried nothing")
    shared = share_scales(down, np.full(96, 2.0))
    assert shared[[3, 7]].tolist() == [1, 1] and shared[4] == 2
    expected = probe.together(block)
    with folded(block, down, shared):
        torch.testing.assert_close(probe.together(block), expected)


def test_shared_weights_are_not_folded(runners):
    runner = runners("llama")
    block = runner.load_block(0)
    block.mlp.up_proj.weight = block.mlp.gate_proj.weight
    sites = {s.name: s for s in find_sites(block, block_probe(runner, 0))}
    assert "gate_proj shares its weight" in sites["mlp.gate_proj"].reason
    assert sites["mlp.down_proj"].prev_op is None  # up_proj's rows are gate_proj's too
    assert sites["self_attn.o_proj"].prev_op == "self_attn.v_proj"


def test_parameters_used_elsewhere_are_locked(runners):
    runner = runners("llama")
    locked = {"input_layernorm.weight", "mlp.down_proj.weight"}
    found = find_sites(runner.load_block(0), block_probe(runner, 0), locked=locked)
    prev_ops = {s.name: s.prev_op for s in found}
    assert prev_ops["self_attn.q_proj"] is None and prev_ops["mlp.down_proj"] is None
    assert prev_ops["mlp.gate_proj"] == "post_attention_layernorm"


def test_fold_without_effect_is_not_claimed(runners):
    runner = runners("llama")
    block = runner.load_block(0)
    block.mlp.down_proj.weight.data.zero_()
    down = find_sites(block, block_probe(runner, 0))[-1]
    assert down.prev_op is None and "no fold can be proven" in down.reason


class Toy(nn.Module):
    """One norm, two linears; what else the norm feeds is chosen by `kind`."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12 if kind != "interleaved" else 6, 8)
        self.requires_grad_(False)

    def forward(self, x):
        y = self.norm(x)
        z = self.up(y)
        if self.kind == "interleaved":
            z = torch.sigmoid(z[..., ::2]) * z[..., 1::2]
        if self.kind == "twice":
            return x + self.down(z) + self.down(2 * z + 1)
        return (y if self.kind == "residual" else x) + self.down(z)


def sites_of_toy(kind):
    alone, together = torch.randn(16, 1, 8), torch.randn(2, 6, 8)
    probe = Probe(lambda b: b(alone), lambda b: b(together))
    return {s.name: s for s in find_sites(Toy(kind), probe)}


def test_norm_that_also_feeds_the_residual_is_refused():
    assert sites_of_toy("plain")["up"].prev_op == "norm"
    refused = sites_of_toy("residual")["up"]
    assert refused.prev_op is None and refused.reason.startswith("norm feeds more than up")


def test_linear_run_twice_is_refused():
    assert "runs 2 times" in sites_of_toy("twice")["down"].reason


def test_rows_beyond_the_halves_are_not_guessed():
    """Channel k is row 2k + 1 times a gate; three halvings of 12 rows isolate four of six."""
    down = sites_of_toy("interleaved")["down"]
    assert down.source.tolist() == [1, 3, -1, 7, 9, -1]
    assert down.reason == "2 of 6 channels keep scale 1: 2 are not fed by one row of up."
