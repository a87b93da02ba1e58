"""Small records for tests: measured here once, or made up."""

import numpy as np

from awqbench.bench.record.check import derive, seal
from awqbench.bench.record.inputs import digest, make_tokens, make_weight
from awqbench.bench.record.kernels import bytes_per_call, expected_digest
from awqbench.bench.record.measure import Plan
from awqbench.bench.record.statistics import summarise

BYTES = bytes_per_call("dequantize", 1, 256, 64)
SMALL = Plan(shapes=("256x64",), threads=(1, 2), blocks=3, block_size=2, everywhere_only=True)


def with_samples(record, samples_s, *, block_size=5):
    """Return a record with other samples and all that follows from them, sealed."""
    changed = record | {"samples_s": [float(s) for s in samples_s], "block_size": block_size}
    return resealed(changed)


def resealed(record):
    """Return a record whose figures follow from its samples, sealed anew."""
    record = dict(record)
    record["stat"] = summarise(record["samples_s"], record["block_size"])
    return seal(record | {"derived": derive(record)})


def noisy(typical_s, seed, *, blocks=10, block_size=5):
    """Return samples of a machine whose state changes from block to block by 10 %."""
    rng = np.random.default_rng(seed)
    states = np.repeat(rng.normal(0, 0.1, blocks), block_size)
    return typical_s * np.exp(states + rng.normal(0, 0.02, blocks * block_size))


def made_up(cpu="Some CPU", *, speed=1.0, bandwidth=10.0, mhz=3000.0, seed=0, numpy="2.0"):
    """Return a read and a dequantization on one thread, both noisy, of a machine."""
    packed = make_weight(256, 64)
    shared = {
        "schema": 1,
        "provenance": "measured",
        "utc": "2026-01-01T00:00:00+00:00",
        "tool": {"name": "awqbench", "version": "0.1.0", "git": None},
        "machine": {"id": digest(np.array([ord(c) for c in cpu])), "arch": "x86_64", "cpu": cpu},
        "isa": {"avx2": True},
        "software": {"numpy": numpy},
        "bandwidth": {"read_gb_s": {"1": bandwidth}, "buffer_bytes": 10**8},
        "freq": {"measured_mhz": mhz},
        "rel_error": None,
        "note": "",
        "id": "00000000-0000-0000-0000-000000000000",
        "n_warmup": 1,
    }
    read = shared | {
        "case": {"kernel": "read", "backend": "numpy dot", "threads": 1},
        "digest": {"input": None, "output": None},
        "bytes_per_call": 10**8,
    }
    inputs = digest(packed.codes, packed.scales, packed.zeros, make_tokens(1, 256))
    case = {"kernel": "dequantize", "backend": "numpy", "M": 1, "K": 256, "N": 64, "bits": 4}
    exact = shared | {
        "case": case | {"group_size": 128, "act_dtype": None, "threads": 1},
        "digest": {"input": inputs, "output": expected_digest("dequantize", 256, 64)},
        "bytes_per_call": BYTES,
    }
    return [
        with_samples(read, noisy(0.1 / bandwidth, seed)),
        with_samples(exact, noisy(1e-3 / speed, seed + 100)),
    ]
