"""How many operations the parts of a run take, from shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Operations(NamedTuple):
    """Operations of one block, two for a multiply-add.

    Parameters
    ----------
    forward : float
        Of its linears; attention's own products, a few percent at 512 tokens, are left out.
    statistics : float
        Of H: half of X'X and the diagonal, which symmetry leaves to be computed.
    """

    forward: float
    statistics: float


def block_operations(
    linears: Iterable[tuple[int, int]], site_widths: Iterable[int], n_tokens: int
) -> Operations:
    """Count the operations that calibrating one block needs.

    Parameters
    ----------
    linears : iterable of (int, int)
        (N, K) of each linear.
    site_widths : iterable of int
        K of each site.
    n_tokens : int

    Examples
    --------
    >>> block_operations([(4, 2)], [2], 10)
    Operations(forward=160.0, statistics=60.0)
    """
    forward = 2.0 * n_tokens * sum(n * k for n, k in linears)
    return Operations(forward, 1.0 * n_tokens * sum(k * (k + 1) for k in site_widths))
