"""What casts of NaN and infinity to integers give on x86 and on ARM, and what codes come of it.

C leaves the cast of a float that the integer type cannot hold undefined, and processors differ:
x86 gives the least integer whatever the float was, ARM the nearest one and 0 for NaN. A
quantizer that casts before it looks writes other codes on the other machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_INT32 = np.iinfo(np.int32)
# The first float32 that is too large.
_TOO_LARGE = np.float32(2.0**31)


def int32_on_x86(values: np.ndarray) -> np.ndarray:
    """Cast float32 to int32 as CVTTPS2DQ does: what does not fit becomes the least integer.

    Parameters
    ----------
    values : ndarray of float32

    Returns
    -------
    ndarray of int32

    Examples
    --------
    >>> int32_on_x86(np.array([-1.5, np.nan, np.inf, -np.inf], np.float32))
    array([         -1, -2147483648, -2147483648, -2147483648], dtype=int32)
    """
    fits = (values >= -_TOO_LARGE) & (values < _TOO_LARGE)
    return np.where(fits, np.where(fits, values, 0).astype(np.int64), _INT32.min).astype(np.int32)


def int32_on_arm(values: np.ndarray) -> np.ndarray:
    """Cast float32 to int32 as FCVTZS does: to the nearest integer there is, and NaN to 0.

    Parameters
    ----------
    values : ndarray of float32

    Returns
    -------
    ndarray of int32

    Examples
    --------
    >>> int32_on_arm(np.array([-1.5, np.nan, np.inf, -np.inf], np.float32))
    array([         -1,           0,  2147483647, -2147483648], dtype=int32)
    """
    whole = np.where(np.isnan(values), 0, np.clip(values, -_TOO_LARGE, _TOO_LARGE))
    return np.clip(whole.astype(np.int64), _INT32.min, _INT32.max).astype(np.int32)


def int32_here(values: np.ndarray) -> np.ndarray:
    """Cast float32 to int32 as NumPy does on this processor, without its warning."""
    with np.errstate(invalid="ignore"):
        # Eight equal lanes each: what vector instructions give; a single element may differ.
        return np.repeat(values[:, None], 8, axis=1).astype(np.int32)[:, 0]


_CASTS = {"x86": int32_on_x86, "ARM": int32_on_arm, "here": int32_here}


def codes_by_cast(weights: Sequence[float], scale: float, zero: int) -> pd.DataFrame:
    """Return the 4-bit codes that a quantizer which does not look would write.

    Parameters
    ----------
    weights : sequence of float
        Of one group.
    scale : float
        Its step; 0 divides.
    zero : int
        Its zero point.

    Returns
    -------
    DataFrame
        A row for each weight: `weight` and `scale`; `masked x86`, `masked ARM` and `masked
        here`, the low four bits of ``int32(rint(w / s) + z)``; `clipped ...`, what
        ``int32(clip(rint(w / s) + z, 0, 15))`` gives, which is no code at all where NaN was; and
        `repaired`, where NaN became the zero point, and infinities the ends, before the cast:
        the same on every processor.
    """
    import pandas as pd

    with np.errstate(all="ignore"):
        steps = np.rint(np.asarray(weights, np.float32) / np.float32(scale)) + np.float32(zero)
    table = pd.DataFrame({"weight": [f"{w:g}" for w in weights], "scale": float(scale)})
    ways: dict[str, Callable] = {
        "masked": lambda cast: cast(steps) & 15,
        "clipped": lambda cast: cast(np.clip(steps, 0, 15)),
    }
    for way, code in ways.items():
        for name, cast in _CASTS.items():
            table[f"{way} {name}"] = code(cast)
    table["repaired"] = np.clip(np.nan_to_num(steps, nan=zero, posinf=15, neginf=0), 0, 15).astype(
        np.int32
    )
    return table


def case_codes() -> pd.DataFrame:
    """Return `codes_by_cast` of weights that happen: sound ones, NaN, infinities, a zero scale."""
    import pandas as pd

    sound = codes_by_cast([0.31, -0.24, np.nan, np.inf, -np.inf], 0.1, 8)
    return pd.concat([sound, codes_by_cast([0.31, 0.0], 0.0, 8)], ignore_index=True)
