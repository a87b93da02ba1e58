"""The formulas of widely used AWQ code, beside ours, to show where their numbers break.

Written from a description of what those programs compute (AutoAWQ 0.2, llm-awq), not from
their source. They work in the model's dtype, so each function takes one: the same formula
can be fine in float32 and break in float16. Nothing here is used to quantize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import AwqbenchError
from awqbench.grid import check_settings, dequantize_groups, quantize_groups
from awqbench.numerics import limits_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

PEER, OURS = "AutoAWQ", "awqbench"
# The least range of a group, and the least scale, that the peers allow: absolute numbers.
_PEER_LEAST_RANGE = 1e-5
_PEER_LEAST_SCALE = 1e-4


class PeerQuant(NamedTuple):
    """A weight as the peers' formula rounds it: values, steps and zero points."""

    decoded: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor


def peer_quantize(
    weight: torch.Tensor, bits: int = 4, group_size: int = 128, *, dtype: str = "float16"
) -> PeerQuant:
    """Round a weight in groups by the peers' formula, every operation in `dtype`.

    Two things differ from `quantize_groups`: the range of a group need not hold 0 though
    its zero point is clipped to `bits` bits, and it is at least 1e-5 whatever the
    magnitude of the weights.

    Parameters
    ----------
    weight : (N, K) torch.Tensor
        Cast to `dtype` first.
    bits : int
    group_size : int
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    PeerQuant
        `decoded` (N, K), `scales` and `zeros` (N, G), of `dtype`.

    Raises
    ------
    AlignmentError, ParameterError
        As `quantize_groups`.
    """
    group_size = check_settings(bits, group_size, weight.shape[1])
    grouped = weight.to(_torch_dtype(dtype)).unflatten(1, (-1, group_size))
    top = 2**bits - 1
    low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
    scales = (high - low).clamp(min=_PEER_LEAST_RANGE) / top
    zeros = (-(low / scales).round()).clamp(0, top)
    codes = ((grouped / scales).round() + zeros).clamp(0, top)
    decoded = (codes - zeros) * scales
    return PeerQuant(decoded.flatten(1), scales.squeeze(2), zeros.squeeze(2))


def peer_weight_magnitude(
    weight: torch.Tensor, group_size: int = 128, *, dtype: str = "float16"
) -> torch.Tensor:
    """Return each channel's mean of ``|w| / max |w|`` over its groups, as the peers do.

    A group that the cast has made zero gives 0 / 0. Newer AutoAWQ adds 1e-6 below; ours is
    `awqbench.quantize.choices.scales.weight_magnitude`.

    Parameters
    ----------
    weight : (N, K) torch.Tensor
    group_size : int
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    (K,) torch.Tensor of `dtype`
    """
    grouped = weight.to(_torch_dtype(dtype)).unflatten(1, (-1, group_size)).abs()
    return (grouped / grouped.amax(dim=2, keepdim=True)).flatten(1).mean(dim=0)


def peer_candidate_scales(
    mean_abs: torch.Tensor, magnitude: torch.Tensor, alpha: float, *, dtype: str = "float16"
) -> torch.Tensor:
    """Return the channel scales of one alpha before normalisation, in `dtype`.

    Parameters
    ----------
    mean_abs, magnitude : (K,) torch.Tensor
        Mean magnitudes of activations and relative ones of weights.
    alpha : float
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    (K,) torch.Tensor of `dtype`
    """
    narrow = _torch_dtype(dtype)
    weights = magnitude.to(narrow).pow(1 - alpha) + _PEER_LEAST_SCALE
    return (mean_abs.to(narrow).pow(alpha) / weights).clamp(min=_PEER_LEAST_SCALE)


def peer_normalise(
    scales: torch.Tensor, *, dtype: str = "float16", repair: bool = True
) -> torch.Tensor:
    """Divide scales by sqrt(max * min) in `dtype`, and then repair what is not finite.

    The product leaves float16's range when the scales are above 256, or one of them is
    infinite; all finite scales then become 0, which the repair does not see. Ours is
    `awqbench.quantize.choices.scales.normalise`.

    Parameters
    ----------
    scales : (K,) torch.Tensor
    dtype : {"float16", "bfloat16", "float32"}
    repair : bool
        Set infinities and NaN to 1 afterwards, as the peers do.

    Returns
    -------
    (K,) torch.Tensor of `dtype`

    Examples
    --------
    >>> import torch
    >>> peer_normalise(torch.tensor([300.0, 310.0, 320.0])).tolist()
    [0.0, 0.0, 0.0]
    >>> peer_normalise(torch.tensor([1.0, 2.0, torch.inf])).tolist()
    [0.0, 0.0, 1.0]
    """
    import torch

    narrow = scales.to(_torch_dtype(dtype))
    normal = narrow / (narrow.max() * narrow.min()).sqrt()
    return torch.where(normal.isfinite(), normal, 1.0) if repair else normal


def compare_quantizers(
    cases: Mapping[str, torch.Tensor],
    *,
    bits: int = 4,
    group_size: int = 128,
    dtypes: Sequence[str] = ("float16", "float32"),
) -> pd.DataFrame:
    """Round weights by the peers' formula and by ours, and compare with the original.

    Parameters
    ----------
    cases : mapping of str to (N, K) torch.Tensor
        Weights by the name of what is special about them.
    bits : int
    group_size : int
    dtypes : sequence of str
        The peers compute in each; ours computes in float32 and stores scales in each.

    Returns
    -------
    DataFrame
        `case`, `formula`, `dtype`, `relative_error` (Frobenius norm of the error over that
        of the weight, in float64; NaN where there is no result), `outcome` (``"decoded"``,
        or the name of the error that was raised).
    """
    import pandas as pd

    rows = []
    for case, weight in cases.items():
        for formula in (PEER, OURS):
            for dtype in dtypes:
                decoded, outcome = None, "decoded"
                try:
                    decoded = _decode(weight, formula, bits, group_size, dtype)
                except AwqbenchError as error:
                    outcome = type(error).__name__
                rows.append(
                    {
                        "case": case,
                        "formula": formula,
                        "dtype": dtype,
                        "relative_error": _relative_error(weight, decoded),
                        "outcome": outcome,
                    }
                )
    return pd.DataFrame(rows)


def compare_normalisers(
    mean_abs: torch.Tensor,
    magnitude: torch.Tensor,
    *,
    levels: Sequence[float] = (),
    n_grid: int = 20,
    dtypes: Sequence[str] = ("float16", "float32"),
) -> pd.DataFrame:
    """Count what becomes of channel scales as the activations' level grows.

    Parameters
    ----------
    mean_abs, magnitude : (K,) torch.Tensor of float32
        Mean magnitudes of activations and relative ones of weights.
    levels : sequence of float
        Activations are scaled so that the median channel has this mean magnitude; none:
        taken as they are.
    n_grid : int
        Points of the alpha grid, 0 and up.
    dtypes : sequence of str
        The peers compute in each; ours computes in float32.

    Returns
    -------
    DataFrame
        A row for each level, formula and alpha: `level`, `formula`, `dtype`, `alpha`;
        `channels`; of those `zero`, whose scale became 0, and `nonfinite`, NaN or infinite
        before the peers' repair; `usable`, the rest.
    """
    import pandas as pd

    median = float(mean_abs.median())
    rows = []
    for level in levels or (median,):
        at_level = mean_abs if not levels else mean_abs * (level / median)
        for formula, dtype in [(PEER, dtype) for dtype in dtypes] + [(OURS, "float32")]:
            for alpha in np.arange(n_grid) / n_grid:
                scales = _candidate(at_level, magnitude, float(alpha), formula, dtype)
                finite = scales.isfinite()
                facts = {"level": level, "formula": formula, "dtype": dtype, "alpha": alpha}
                counts = {
                    "channels": len(scales),
                    "zero": int((scales == 0).sum()),
                    "nonfinite": int((~finite).sum()),
                    "usable": int((finite & (scales > 0)).sum()),
                }
                rows.append(facts | counts)
    return pd.DataFrame(rows)


def _candidate(mean_abs, magnitude, alpha: float, formula: str, dtype: str) -> torch.Tensor:
    from awqbench.quantize.choices.scales import candidate_scales

    if formula == OURS:
        return candidate_scales(mean_abs, magnitude, alpha, None)
    scales = peer_candidate_scales(mean_abs, magnitude, alpha, dtype=dtype)
    return peer_normalise(scales, dtype=dtype, repair=False)


def _decode(weight, formula: str, bits: int, group_size: int, dtype: str) -> np.ndarray:
    if formula == PEER:
        return peer_quantize(weight, bits, group_size, dtype=dtype).decoded.double().numpy()
    quant = quantize_groups(weight.float().numpy(), bits, group_size, scale_dtype=dtype)
    return dequantize_groups(quant.codes, quant.scales, quant.zeros, group_size=group_size)


def _relative_error(weight: torch.Tensor, decoded: np.ndarray | None) -> float:
    if decoded is None:
        return np.nan
    exact = weight.double().numpy()
    return float(np.linalg.norm(decoded - exact) / np.linalg.norm(exact))


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    limits_of(name)
    return getattr(torch, name)
