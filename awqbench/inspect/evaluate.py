"""How good is a model still? Perplexity with an interval, and a paired comparison.

Windows of text are the sample: their spread gives the standard error, and two models are
compared window by window, so that what makes a window hard cancels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import CalibrationTextError, NonFiniteError
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import torch

# Normal quantile of a two-sided 95 % interval.
_Z95 = 1.96


class Perplexity(NamedTuple):
    """Perplexity of a model on windows of text.

    Parameters
    ----------
    ppl : float
        exp of the mean negative log-likelihood per token.
    ppl_low, ppl_high : float
        95 % interval over windows.
    nll : float
        Nats a token.
    nll_se : float
        Standard error of `nll` over windows.
    window_nll : (n,) ndarray of float64
        Mean of each window.
    """

    ppl: float
    ppl_low: float
    ppl_high: float
    nll: float
    nll_se: float
    window_nll: np.ndarray


class Comparison(NamedTuple):
    """Model b against model a on the same windows.

    Parameters
    ----------
    delta_nll : float
        Mean of b's nats a token less a's; positive means b is worse.
    delta_se : float
        Its standard error, paired by window.
    kl : float
        Mean Kullback-Leibler divergence KL(a || b) in nats a token.
    kl_se : float
        Its standard error over windows.
    top1_agreement : float
        Share of positions where both models' likeliest token is the same.
    first_divergence : float
        Median index of the first position of a window at which the likeliest tokens
        differ; the window's length where they never do.
    """

    delta_nll: float
    delta_se: float
    kl: float
    kl_se: float
    top1_agreement: float
    first_divergence: float


def perplexity(model: torch.nn.Module, tokens: np.ndarray, *, batch_size: int = 8) -> Perplexity:
    """Measure perplexity on windows of text.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers; logits are reduced in float32.
    tokens : (n, seq) ndarray of int64
    batch_size : int
        Windows run at a time.

    Returns
    -------
    Perplexity

    Raises
    ------
    CalibrationTextError
        If there are no windows, or they are shorter than 2 tokens.
    NonFiniteError
        If the logits hold NaN or infinity; names the first place.
    """
    nll = np.concatenate(
        [
            -_chosen(_log_probabilities(model, rows), rows).mean(dim=1).double().numpy()
            for rows in _batches(tokens, batch_size, "perplexity")
        ]
    )
    return summarise_nll(nll)


def summary(result: Perplexity) -> dict[str, float]:
    """Return the numbers of a perplexity without its windows."""
    return {name: value for name, value in result._asdict().items() if name != "window_nll"}


def summarise_nll(window_nll: np.ndarray) -> Perplexity:
    """Return perplexity and its interval from each window's mean nats a token, (n,)."""
    mean, error = float(window_nll.mean()), standard_error(window_nll)

    def power(x):
        return math.inf if x >= 700 else math.exp(x)  # NaN stays NaN

    low, high = power(mean - _Z95 * error), power(mean + _Z95 * error)
    return Perplexity(power(mean), low, high, mean, error, window_nll)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def compare(
    model_a: torch.nn.Module, model_b: torch.nn.Module, tokens: np.ndarray, *, batch_size: int = 8
) -> Comparison:
    """Compare two models on the same windows, teacher-forced.

    Parameters
    ----------
    model_a, model_b : torch.nn.Module
        The reference, and the one that is judged.
    tokens : (n, seq) ndarray of int64
    batch_size : int

    Returns
    -------
    Comparison

    Raises
    ------
    CalibrationTextError, NonFiniteError
        As `perplexity`.
    """
    delta, divergence, agreement, first = [], [], [], []
    for rows in _batches(tokens, batch_size, "compare"):
        log_a, log_b = _log_probabilities(model_a, rows), _log_probabilities(model_b, rows)
        delta.append((_chosen(log_a, rows) - _chosen(log_b, rows)).mean(dim=1).double())
        # A token that a rules out, probability 0 and log -inf, adds nothing.
        kl = (log_a.exp() * (log_a - log_b)).masked_fill_(log_a.isneginf(), 0).sum(dim=-1)
        divergence.append(kl.mean(dim=1).double())
        same = log_a.argmax(dim=-1) == log_b.argmax(dim=-1)
        agreement.append(same.double().mean(dim=1))
        first += [int((~s).nonzero()[0]) if not s.all() else s.numel() for s in same]
    deltas, kls, agreed = (np.concatenate(x) for x in (delta, divergence, agreement))
    return Comparison(
        float(deltas.mean()),
        standard_error(deltas),
        float(kls.mean()),
        standard_error(kls),
        float(agreed.mean()),
        float(np.median(first)),
    )


def first_divergence(
    model_a: torch.nn.Module,
    model_b: torch.nn.Module,
    prompt: np.ndarray,
    *,
    max_new_tokens: int = 64,
) -> int:
    """Return how many tokens of greedy text two models share after a prompt.

    Parameters
    ----------
    model_a, model_b : torch.nn.Module
    prompt : (seq,) ndarray of int64
    max_new_tokens : int

    Returns
    -------
    int
        Index of the first token that differs; `max_new_tokens` if none does.
    """
    import torch

    rows = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None]
    texts = []
    for model in (model_a, model_b):
        with torch.no_grad():
            out = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens,
                do_sample=False,
            )
        texts.append(out[0, rows.shape[1] :])
    differ = (texts[0] != texts[1]).nonzero()
    return int(differ[0]) if len(differ) else max_new_tokens


def _batches(tokens: np.ndarray, batch_size: int, label: str):
    import torch

    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise CalibrationTextError(
            f"evaluation tokens have shape {tokens.shape}; need (n, seq) with seq of 2 or more."
        )
    rows = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
    return progress_bar(rows.split(batch_size), label, unit="batch")


def _log_probabilities(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of every next token, (n, seq - 1, vocabulary) float32."""
    import torch

    with torch.no_grad():
        logits = model(rows.to(_device_of(model)), use_cache=False).logits[:, :-1]
        log_probabilities = logits.float().log_softmax(dim=-1).cpu()
    # NaN or +inf among the logits of a position makes all its log-probabilities NaN.
    bad = log_probabilities[..., 0].isnan()
    if bad.any():
        window, position = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"the logits hold NaN or inf at {int(bad.sum())} of {bad.numel()} positions, first at "
            f"position {position} of window {window} of its batch; the model overflows its "
            "dtype, or a weight is damaged: run it in bfloat16 or float32, and scan its weights."
        )
    return log_probabilities


def _chosen(log_probabilities: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return log_probabilities.gather(-1, rows[:, 1:, None]).squeeze(-1)


def _device_of(model: torch.nn.Module):
    return next(model.parameters()).device
