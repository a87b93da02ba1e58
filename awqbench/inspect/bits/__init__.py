"""Bits and group size for every linear under a size limit, from statistics."""

from awqbench.inspect.bits.suggest import suggest_bits

__all__ = ["suggest_bits"]
