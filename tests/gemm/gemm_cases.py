"""Packed weights and tokens chosen to hurt, for the tests of every backend."""

import numpy as np
import torch

from awqbench.gemm import available_backends, gemm, layout
from awqbench.numerics import round_to
from awqbench.packed import PackedWeight, quantize_weight

# "native" makes int16 of tokens, "native float32" does not.
NATIVE = ("native", "native float32") if not available_backends()["native"] else ()
BACKENDS = ("numpy", "numexpr", "torch", *NATIVE)


def accuracy(backend):
    """Relative Frobenius error to float64 that a backend promises, on these small cases.

    (int16: 1e-4 on average where one token in 128 is large; a few rows may lie above it.)
    """
    return 1.5e-4 if backend == "native" else 1e-6


def random_packed(
    n, k, group_size, *, bits=4, zero_point=True, g_idx=None, scale=0.01, scale_dtype="float32"
):
    """Draw a packed weight of any shape; only the last group may be short."""
    rng = np.random.default_rng(n * 1000 + k + bits)
    n_groups = -(-k // group_size) if g_idx is None else int(g_idx.max()) + 1
    scales = round_to(scale * (0.5 + rng.random((n, n_groups))), scale_dtype)
    zeros = rng.integers(0, 1 << bits, (n, n_groups), dtype=np.uint8)
    if not zero_point:
        zeros[:] = 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    return PackedWeight(
        codes, scales, zeros, bits, group_size, zero_point, scale_dtype, g_idx, name="layers.0.up"
    )


def act_order(k, group_size, *, seed=1):
    return np.random.default_rng(seed).permutation(np.arange(k) // group_size).astype(np.int32)


def one_signed():
    weight = np.abs(np.random.default_rng(2).standard_normal((24, 256))) + 1
    weight[::2] *= -1
    return quantize_weight(weight, group_size=64)


def with_zero_groups(bits=4, zero_point=True):
    weight = np.random.default_rng(3).standard_normal((24, 256))
    weight *= 0.01  # where the scale of a zero group is 1
    weight[::3, :64], weight[5], weight[:, 192:] = 0, 0, 0
    return quantize_weight(weight, bits, group_size=64, zero_point=zero_point)


def with_outliers(bits, group_size, zero_point=False):
    """Most codes lie at the zero point, one far from it: what cancels is large."""
    weight = np.random.default_rng(4).standard_normal((32, 512))
    weight[:, ::100] *= 30
    return quantize_weight(weight, bits, group_size, zero_point=zero_point)


CASES = {
    "plain": lambda: random_packed(96, 256, 128),
    "several blocks and tiles": lambda: random_packed(2 * layout.BLOCK + 64, 2048, 128),
    "several blocks, symmetric": lambda: random_packed(
        layout.BLOCK + 64, 2048, 128, zero_point=False
    ),
    "symmetric": lambda: random_packed(64, 256, 64, zero_point=False),
    "tail": lambda: random_packed(40, 160, 64),
    "whole rows": lambda: random_packed(17, 300, 300),
    "group of 256": lambda: random_packed(64, 512, 256),
    "odd group": lambda: random_packed(8, 99, 33),
    "groups of one": lambda: random_packed(3, 7, 1),
    "one by one": lambda: random_packed(1, 1, 1),
    "act-order": lambda: random_packed(64, 256, 32, g_idx=act_order(256, 32)),
    "act-order, tail": lambda: random_packed(24, 160, 64, g_idx=act_order(160, 64)),
    "uneven groups": lambda: random_packed(
        16, 200, 50, g_idx=np.random.default_rng(5).integers(0, 4, 200).astype(np.int32)
    ),
    "one-signed groups": one_signed,
    "zero groups": with_zero_groups,
    "zero groups, symmetric": lambda: with_zero_groups(zero_point=False),
    "zero groups, 8 bits": lambda: with_zero_groups(bits=8, zero_point=False),
    "outliers": lambda: with_outliers(4, 128, zero_point=True),
    "outliers, symmetric": lambda: with_outliers(4, 128),
    "outliers, 8 bits, whole rows": lambda: with_outliers(8, 512),
    "huge scales": lambda: random_packed(32, 128, 32, scale=1e30),
    "tiny scales": lambda: random_packed(32, 128, 32, scale=1e-30),
    "subnormal scales": lambda: random_packed(32, 128, 32, scale=3e-39),
    "float16 scales": lambda: random_packed(64, 256, 64, scale_dtype="float16"),
    "bfloat16 scales": lambda: random_packed(64, 256, 64, scale_dtype="bfloat16"),
    **{
        f"{bits} bits{', symmetric' * (not zp)}": lambda bits=bits, zp=zp: random_packed(
            40, 256, 128, bits=bits, zero_point=zp
        )
        for bits in range(2, 9)
        for zp in (True, False)
    },
}


# A few that differ in how a kernel reads them.
SHAPES = {
    "short last group": lambda: random_packed(40, 160, 64),
    "groups of 32": lambda: random_packed(200, 256, 32),
    "whole rows": lambda: random_packed(64, 300, 300, zero_point=False),
    "one column": lambda: random_packed(1, 64, 64),
    "act-order": lambda: random_packed(72, 256, 32, g_idx=act_order(256, 32)),
    "8 bits": lambda: random_packed(130, 256, 128, bits=8),
    "8 bits, bfloat16 scales": lambda: random_packed(
        48, 160, 64, bits=8, scale=1e-20, scale_dtype="bfloat16"
    ),
    "3 bits": lambda: random_packed(40, 256, 128, bits=3),
    "5 bits": lambda: random_packed(40, 256, 128, bits=5),
}


def tokens_for(packed, m, *, kind="normal"):
    x = np.random.default_rng(m).standard_normal((m, packed.in_features)).astype(np.float32)
    if kind == "far from zero":
        x += 30
    if kind == "outliers":
        x[:, ::50] *= 1000
    return x


def run(x, packed, backend):
    """As an array, or through a tensor for the torch backend."""
    if backend == "native float32":
        return gemm(x, packed, "native", activations="float32")
    if backend == "torch":
        return gemm(torch.from_numpy(x), packed, backend).numpy()
    return gemm(x, packed, backend)


def relative_error(y, reference):
    norm = np.linalg.norm(reference)
    return float(np.linalg.norm(y.astype(np.float64) - reference) / (norm if norm else 1))
