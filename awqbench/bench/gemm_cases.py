"""What is timed: a product of some shape, on copies of its weight that no cache can hold.

One 4096 x 4096 layer at 4 bits (9 MB) called again and again sits in the cache and looks up
to twice as fast as in a model, where every other layer is read in between. So a path holds
several copies of the weight and takes the next one at each call.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from awqbench.bench.probes import CACHE_MULTIPLE, available_bytes, last_level_cache_bytes
from awqbench.errors import ParameterError
from awqbench.grid import check_settings
from awqbench.packed import PackedWeight

# (K, N) of linears that people run.
SHAPES = {
    "qwen3-0.6b-up": (1024, 3072),
    "qwen3-1.7b-up": (2048, 6144),
    "qwen3-8b-up": (4096, 12288),
    "qwen3-8b-down": (12288, 4096),
    "qwen2-72b-up": (8192, 29568),
}
# Fewest copies: with two, the weight of the call before is never the one that is read.
_LEAST_COPIES = 2
_MAX_COPIES = 256
# Share of free memory that the copies of all paths together may take.
_MEMORY_SHARE = 0.4
# Tokens whose outputs are checked, and rows of W decoded to float64 at a time.
_CHECKED_TOKENS, _CHECKED_ROWS = 4, 512


@dataclass(frozen=True)
class GemmCase:
    """A product to time: M tokens by a packed weight (N, K)."""

    in_features: int
    out_features: int
    tokens: int = 1
    bits: int = 4
    group_size: int = 128

    @property
    def shape(self) -> str:
        """``KxN``."""
        return f"{self.in_features}x{self.out_features}"

    @property
    def flop(self) -> float:
        """Operations of a product, two for a multiply-add."""
        return 2.0 * self.tokens * self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight as a checkpoint stores it: codes, zero points, float16 scales."""
        n_scales = self.out_features * -(-self.in_features // self.group_size)
        n_codes = self.out_features * self.in_features
        return (n_codes + n_scales) * self.bits // 8 + 2 * n_scales


def parse_shape(text: str) -> tuple[int, int]:
    """Read ``4096x12288``, K x N, or one of the names in `SHAPES`.

    Raises
    ------
    ParameterError
        If it is neither.

    Examples
    --------
    >>> parse_shape("4096x12288"), parse_shape("qwen3-0.6b-up")
    ((4096, 12288), (1024, 3072))
    """
    if text in SHAPES:
        return SHAPES[text]
    found = re.fullmatch(r"([1-9]\d{0,6})[x×]([1-9]\d{0,6})", text)
    if found is None:
        raise ParameterError(
            f"shape {text!r} is not KxN (in_features x out_features), such as 4096x12288, nor one "
            f"of {', '.join(SHAPES)}."
        )
    return int(found[1]), int(found[2])


def make_cases(
    shapes: Sequence[str], tokens: Sequence[int], *, bits: int = 4, group_size: int = 128
) -> list[GemmCase]:
    """Return the cases of every shape and number of tokens, checked before anything is timed.

    Parameters
    ----------
    shapes : sequence of str
        As `parse_shape` takes them.
    tokens : sequence of int
        At least 1 each.
    bits : int
    group_size : int
        -1 for whole rows.

    Raises
    ------
    ParameterError
        If a shape, a number of tokens or of bits is not usable.
    AlignmentError
        If a group size does not divide K.
    """
    if not shapes or not tokens or min(tokens) < 1:
        raise ParameterError(
            f"shapes {list(shapes)} and tokens {list(tokens)}: at least one of each is needed, and "
            "tokens from 1 on."
        )
    cases = []
    for k, n in map(parse_shape, shapes):
        size = check_settings(bits, group_size, k)
        cases += [GemmCase(k, n, m, bits, size) for m in tokens]
    return cases


def random_weight(case: GemmCase, *, seed: int = 0) -> PackedWeight:
    """Make a weight of random codes, zero points near the middle and weights of about 1.

    Made in codes and not by quantizing: ten times faster, and what the codes are does not
    change the time. Whole rows get the constant zero point of symmetric weights, which is
    the only one that per-channel operators take.
    """
    rng = np.random.default_rng(seed)
    n, k, levels = case.out_features, case.in_features, 1 << case.bits
    n_groups = -(-k // case.group_size)
    symmetric = n_groups == 1
    spread = 0 if symmetric else max(1, levels // 8)
    zeros = levels // 2 + rng.integers(-spread, spread + 1, (n, n_groups))
    step = (1 + rng.random((n, n_groups))) * 2 / levels
    return PackedWeight(
        codes=rng.integers(0, levels, (n, k), dtype=np.uint8),
        scales=step.astype(np.float16).astype(np.float32),
        zeros=zeros.clip(0, levels - 1).astype(np.uint8),
        bits=case.bits,
        group_size=case.group_size,
        zero_point=not symmetric,
        name=case.shape,
    )


def copies_needed(weight_bytes: int, *, n_paths: int = 1, cache_bytes: int | None = None) -> int:
    """Return how many copies of a weight outgrow the last-level cache several times.

    Parameters
    ----------
    weight_bytes : int
        Of one copy, in the form that a path reads.
    n_paths : int
        Paths that hold copies at the same time and share the memory.
    cache_bytes : int, optional
        Default: that of this machine.

    Returns
    -------
    int
        At least 2 and at most 256, and no more than fit into the free memory.
    """
    cache = last_level_cache_bytes() if cache_bytes is None else cache_bytes
    wanted = -(-CACHE_MULTIPLE * cache // max(weight_bytes, 1))
    fitting = int(_MEMORY_SHARE * available_bytes() / max(n_paths * weight_bytes, 1))
    return max(_LEAST_COPIES, min(wanted, fitting, _MAX_COPIES))


class Rotation:
    """Calls the next of several functions each time, round and round.

    Parameters
    ----------
    calls : sequence of callable
        Each takes x and multiplies by its own copy of the weight.
    """

    def __init__(self, calls: Sequence[Callable[[Any], Any]]) -> None:
        self.calls = list(calls)
        self._turns = itertools.cycle(self.calls)

    def __call__(self, x: Any) -> Any:
        """Multiply x by the next copy."""
        return next(self._turns)(x)


def checked_tokens(tokens: int) -> np.ndarray:
    """Return which tokens of M are compared with float64: a few, first and last among them."""
    return np.unique(np.linspace(0, tokens - 1, min(tokens, _CHECKED_TOKENS)).astype(int))


def exact_product(x: np.ndarray, packed: PackedWeight) -> np.ndarray:
    """Return x Wᵀ in float64, (M, N), decoding some rows of W at a time."""
    parts = []
    index = packed.group_index()
    for at in range(0, packed.out_features, _CHECKED_ROWS):
        rows = slice(at, at + _CHECKED_ROWS)
        steps = packed.codes[rows].astype(np.float64) - packed.zeros[rows][:, index]
        parts.append(x.astype(np.float64) @ (steps * packed.scales[rows][:, index]).T)
    return np.concatenate(parts, axis=1)


def relative_error(y: np.ndarray, exact: np.ndarray) -> float:
    """Return the relative Frobenius error, infinity where y is not finite or of another shape."""
    if y.shape != exact.shape or not np.isfinite(y).all():
        return float("inf")
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
