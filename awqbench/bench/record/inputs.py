"""What is computed on every machine alike: inputs by integer arithmetic, and digests of them.

Random generators may give other numbers in another version of NumPy; a hash of the index
cannot. Scales are numbers that float16 holds exactly.
"""

from __future__ import annotations

import hashlib

import numpy as np

from awqbench.packed import PackedWeight

BITS, GROUP_SIZE = 4, 128


def _hashed(count: int, salt: int) -> np.ndarray:
    """Return `count` well-mixed 32-bit numbers."""
    values = np.arange(count, dtype=np.uint32) + np.uint32(salt * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # murmur3's finalizer
        values ^= values >> np.uint32(shift)
        values *= np.uint32(factor)
    return values


def make_weight(in_features: int, out_features: int) -> PackedWeight:
    """Return the weight (N, K) of a shape, 4 bits in groups of 128."""
    n_groups = in_features // GROUP_SIZE
    codes = _hashed(out_features * in_features, 1) >> np.uint32(32 - BITS)
    zeros = _hashed(out_features * n_groups, 2) >> np.uint32(32 - BITS)
    steps = (_hashed(out_features * n_groups, 3) >> np.uint32(22)).astype(np.float32)
    return PackedWeight(
        codes=codes.astype(np.uint8).reshape(out_features, in_features),
        scales=((1 + steps / 1024) / 64).reshape(out_features, n_groups),
        zeros=zeros.astype(np.uint8).reshape(out_features, n_groups),
        bits=BITS,
        group_size=GROUP_SIZE,
        name=f"{in_features}x{out_features}",
    )


def make_tokens(tokens: int, in_features: int) -> np.ndarray:
    """Return x (M, K) in float32, evenly spread over [-1, 1)."""
    whole = (_hashed(tokens * in_features, 4) >> np.uint32(8)).astype(np.float32)
    return (whole / 2**23 - 1).reshape(tokens, in_features)


def digest(*arrays: np.ndarray) -> str:
    """Return a digest of dtype, shape and little-endian content.

    Examples
    --------
    >>> digest(np.zeros(2, np.uint8)) == digest(np.zeros(3, np.uint8))
    False
    """
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{little.dtype.str}{array.shape}".encode())
        found.update(little)
    return found.hexdigest()
