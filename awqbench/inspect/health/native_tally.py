"""The figures of a tensor by the compiled scan, where there is one: one pass, not seven."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from awqbench.inspect.health.figures import NOTHING, ROWS_PER_SAMPLE, Figures, Scratch, Tally
from awqbench.inspect.health.patterns import Patterns

# Figures in the order of the kernel's output.
_FIELDS = (
    "absmax",
    "smallest",
    "nonzero",
    "nonfinite",
    "overflow",
    "flushed",
    "subnormal",
    "smallest_group",
    "groups",
    "vanished",
    "one_signed",
)
Scan = Callable[..., None]


def make_tally(
    patterns: Patterns, *, group_size: int | None, scratch: Scratch | None = None
) -> Tally | NativeTally:
    """Return a tally: the compiled one for numbers of 16 bits where it is built, else NumPy's."""
    scan = find_scan() if patterns.integer.itemsize == 2 else None
    if scan is None:
        return Tally(patterns, group_size=group_size, scratch=scratch)
    return NativeTally(patterns, scan, group_size=group_size)


def find_scan() -> Scan | None:
    """Return the compiled scan, or None where no compiler is."""
    from awqbench.gemm import native

    if not native.is_usable():
        return None
    scan = native.library().functions.awq_scan16
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    scan.argtypes = [pointer, count, count, count, pointer, count, pointer, pointer]
    scan.restype = None
    return scan


class NativeTally:
    """What `Tally` counts, counted by kernels/native_scan.cpp.

    Parameters
    ----------
    patterns : Patterns
        Of a dtype of 16 bits.
    scan : callable
    group_size : int, optional
    """

    def __init__(self, patterns: Patterns, scan: Scan, *, group_size: int | None) -> None:
        self._scan, self._group_size = scan, group_size
        limits = (patterns.infinite, *patterns[2:])
        # Beyond every pattern, where nothing overflows, is beyond the kernel's numbers too.
        self._limits = np.array([min(limit, 1 << 15) for limit in limits], np.int32)
        self._out = np.zeros(len(_FIELDS), np.int64)
        for name in ("smallest", "smallest_group"):
            self._out[_FIELDS.index(name)] = NOTHING
        self._channels: np.ndarray | None = None

    def add(self, stored: np.ndarray) -> None:
        """Look at a piece, (rows, width) contiguous bit patterns of int16."""
        if stored.size == 0:
            return
        rows, width = stored.shape
        channels = None
        if self._group_size is not None and rows > 1:  # a part of a row has none to compare
            if self._channels is None:
                self._channels = np.zeros(width, np.int16)
            channels = self._channels.ctypes.data
        self._scan(
            stored.ctypes.data,
            rows,
            width,
            self._group_size or 0,
            self._limits.ctypes.data,
            ROWS_PER_SAMPLE,
            channels,
            self._out.ctypes.data,
        )

    def figures(self) -> Figures:
        """Return the figures of all pieces so far."""
        return Figures(**dict(zip(_FIELDS, map(int, self._out), strict=True)))._replace(
            channels=self._channels
        )
