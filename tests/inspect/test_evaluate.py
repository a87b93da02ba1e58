"""Perplexity, its interval and comparisons, on models whose numbers are known by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from awqbench.errors import CalibrationTextError, NonFiniteError
from awqbench.inspect.evaluate import (
    compare,
    first_divergence,
    perplexity,
    standard_error,
    summarise_nll,
    summary,
)

VOCABULARY = 11


class Bigram(nn.Module):
    """A language model that looks at the last token only: row t holds the logits after t."""

    def __init__(self, logits, dtype=torch.float32):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(np.asarray(logits)).to(dtype))

    def forward(self, rows, use_cache=None):
        return SimpleNamespace(logits=self.logits[rows])

    def generate(self, rows, *, attention_mask, max_new_tokens, min_new_tokens, do_sample):
        assert attention_mask.all() and not do_sample
        assert max_new_tokens == min_new_tokens
        for _ in range(max_new_tokens):
            rows = torch.cat([rows, self.logits[rows[:, -1:]].argmax(dim=-1)], dim=1)
        return rows


def random_logits(seed=0, spread=2.0):
    return spread * np.random.default_rng(seed).standard_normal((VOCABULARY, VOCABULARY))


def random_tokens(n=6, seq=9):
    return np.random.default_rng(9).integers(0, VOCABULARY, (n, seq))


def log_probabilities(logits):
    wide = np.asarray(logits, np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def window_nll(logits, tokens):
    table = log_probabilities(logits)
    return np.array(
        [-np.mean([table[a, b] for a, b in zip(t, t[1:], strict=False)]) for t in tokens]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uniform_model_is_as_perplexed_as_its_vocabulary_is_large(dtype):
    result = perplexity(Bigram(np.zeros((VOCABULARY, VOCABULARY)), dtype), random_tokens())
    assert result.ppl == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.ppl_low == pytest.approx(result.ppl_high)
    assert result.nll == pytest.approx(math.log(VOCABULARY))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_perplexity_is_the_hand_s(batch_size):
    tokens = random_tokens()
    result = perplexity(Bigram(random_logits()), tokens, batch_size=batch_size)
    expected = window_nll(random_logits(), tokens)
    np.testing.assert_allclose(result.window_nll, expected, rtol=1e-5)
    assert result.window_nll.dtype == np.float64
    assert result.ppl == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    error = expected.std(ddof=1) / math.sqrt(len(expected))
    assert result.nll_se == pytest.approx(error, rel=1e-4)
    assert result.ppl_low == pytest.approx(math.exp(expected.mean() - 1.96 * error), rel=1e-4)
    assert result.ppl_high == pytest.approx(math.exp(expected.mean() + 1.96 * error), rel=1e-4)
    assert set(summary(result)) == {"ppl", "ppl_low", "ppl_high", "nll", "nll_se"}


def test_interval_holds_the_truth_about_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    draws = 2 + 0.3 * rng.standard_normal((400, 64))
    hits = [r.ppl_low <= math.exp(2) <= r.ppl_high for r in map(summarise_nll, draws)]
    assert 0.91 < np.mean(hits) < 0.98


def test_one_window_has_no_interval():
    result = perplexity(Bigram(random_logits()), random_tokens(n=1))
    assert math.isfinite(result.ppl)
    assert math.isnan(result.nll_se)
    assert math.isnan(result.ppl_low) and math.isnan(result.ppl_high)
    assert math.isnan(standard_error(np.zeros(0)))


def test_nats_beyond_a_float_s_exponent_are_infinite_perplexity():
    assert summarise_nll(np.array([800.0, 800.0])).ppl == math.inf
    assert math.isnan(summarise_nll(np.array([np.nan, 1.0])).ppl)


def test_a_model_against_itself():
    result = compare(Bigram(random_logits()), Bigram(random_logits()), random_tokens())
    assert result == (0, 0, 0, 0, 1, 8)


def test_comparison_is_the_hand_s():
    tokens = random_tokens()
    a, b = random_logits(0), random_logits(0) + random_logits(1, spread=0.7)
    result = compare(Bigram(a), Bigram(b), tokens, batch_size=4)
    delta = window_nll(b, tokens) - window_nll(a, tokens)
    log_a, log_b = log_probabilities(a), log_probabilities(b)
    kl_of = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    kl = kl_of[tokens[:, :-1]].mean(axis=1)
    same = (a.argmax(axis=1) == b.argmax(axis=1))[tokens[:, :-1]]
    first = [row.tolist().index(False) if not row.all() else len(row) for row in same]
    assert result.delta_nll == pytest.approx(delta.mean(), abs=1e-6)
    assert result.delta_se == pytest.approx(delta.std(ddof=1) / math.sqrt(6), rel=1e-4)
    assert result.kl == pytest.approx(kl.mean(), rel=1e-5) and result.kl > 0.01
    assert result.kl_se == pytest.approx(kl.std(ddof=1) / math.sqrt(6), rel=1e-4)
    assert result.top1_agreement == pytest.approx(same.mean())
    assert 0 < result.top1_agreement < 1
    assert result.first_divergence == np.median(first)


def test_worse_is_positive():
    good = 5 * np.eye(VOCABULARY)
    tokens = np.repeat(np.arange(4)[:, None], 6, axis=1)  # every token follows itself
    result = compare(Bigram(good), Bigram(np.zeros_like(good)), tokens)
    assert result.delta_nll > 0 and compare(Bigram(0 * good), Bigram(good), tokens).delta_nll < 0


def test_tokens_that_a_model_rules_out():
    # Padded vocabularies have logits of -inf: no token there, and no NaN from 0 * inf.
    a, b = random_logits(0), random_logits(1)
    a[:, 10] = b[:, 10] = -np.inf
    tokens = random_tokens() % 10
    assert math.isfinite(perplexity(Bigram(a), tokens).ppl)
    result = compare(Bigram(a), Bigram(b), tokens)
    expected = compare(Bigram(a[:, :10]), Bigram(b[:, :10]), tokens)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = random_logits()
    logits[7, 3] = bad
    tokens = np.zeros((3, 6), int)
    tokens[1, 2] = tokens[2, 4] = 7
    words = "NaN or inf at 2 of 15 positions, first at position 2 of window 1 "
    with pytest.raises(NonFiniteError, match=words):
        perplexity(Bigram(logits), tokens)
    for pair in ((logits, random_logits()), (random_logits(), logits)):
        with pytest.raises(NonFiniteError, match=words):
            compare(*map(Bigram, pair), tokens)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (3, 0), (8,), (2, 3, 4)])
def test_tokens_that_are_no_windows(shape):
    model = Bigram(random_logits())
    with pytest.raises(CalibrationTextError, match=r"\(n, seq\) with seq of 2 or more"):
        perplexity(model, np.zeros(shape, int))
    with pytest.raises(CalibrationTextError):
        compare(model, model, np.zeros(shape, int))


def test_first_divergence_counts_shared_tokens():
    follow = np.roll(np.eye(VOCABULARY), 1, axis=1)  # 0 1 2 3 ...
    stray = follow.copy()
    stray[6] = np.eye(VOCABULARY)[0]
    prompt = np.array([0, 1, 2])
    assert first_divergence(Bigram(follow), Bigram(follow), prompt, max_new_tokens=9) == 9
    # After 2: 3 4 5 6 are shared, then 7 against 0.
    assert first_divergence(Bigram(follow), Bigram(stray), prompt, max_new_tokens=9) == 4
    assert first_divergence(Bigram(follow), Bigram(stray), prompt, max_new_tokens=3) == 3


def test_models_of_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    a, b = (LlamaForCausalLM(LlamaConfig(**sizes)).eval() for _ in range(2))
    tokens = random_tokens(4, 8)
    with torch.no_grad():
        rows = torch.from_numpy(tokens)
        loss = a(rows, labels=rows).loss
    assert perplexity(a, tokens).nll == pytest.approx(float(loss), rel=1e-5)
    assert compare(a, a, tokens).top1_agreement == 1 > compare(a, b, tokens).top1_agreement
    assert first_divergence(a, a, tokens[0], max_new_tokens=12) == 12
    assert first_divergence(a, b, tokens[0], max_new_tokens=12) < 12
