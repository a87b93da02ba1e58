"""The native kernels against torch's own, in turns in one run, with weights from memory.

Prints, for each number of tokens, the median time of every path and how many times faster
native is than it; for one token also the rate at which packed bytes are read, against a probe
that reads 256 MB in the same turns. Every call takes the next of several copies of the
weight, so that it comes from memory and not from the cache, as in a model.

    python benchmarks/native_gemm.py [--threads 2] [--bits 4] [--tokens 1 16 512] [--json]
"""

from __future__ import annotations

import argparse
import json
import mmap
from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch

from awqbench.bench.timing import Timing, time_in_turns
from awqbench.gemm import native
from awqbench.gemm.native_layout import NativeWeight, aligned_bytes, stream_weight
from awqbench.packed import PackedWeight

# All copies of a weight together: several times the last-level cache.
COPIED_BYTES = 160_000_000
PROBE_BYTES = 256_000_000


def random_weight(out_features: int, in_features: int, bits: int, group_size: int) -> PackedWeight:
    """Draw codes; scales are float16, as in a checkpoint."""
    rng = np.random.default_rng(0)
    shape = (out_features, in_features // group_size)
    return PackedWeight(
        codes=rng.integers(0, 1 << bits, (out_features, in_features), dtype=np.uint8),
        scales=(rng.random(shape) * 0.01).astype(np.float16).astype(np.float32),
        zeros=rng.integers(0, 1 << bits, shape, dtype=np.uint8),
        bits=bits,
        group_size=group_size,
    )


def copies(make: Callable, nbytes: int) -> Callable:
    """Return a function that gives the next of as many copies as `COPIED_BYTES` hold."""
    made = cycle([make() for _ in range(max(2, COPIED_BYTES // nbytes))])
    return lambda: next(made)


def copy_stream(weight: NativeWeight, allocate: Callable = aligned_bytes) -> NativeWeight:
    """Copy a weight into memory of its own."""
    stream = allocate(len(weight.stream))
    stream[:] = weight.stream
    return weight._replace(stream=stream)


def small_pages(nbytes: int) -> np.ndarray:
    """Return memory in pages of 4 KiB, where the system would give huge ones to a weight."""
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def peer(packed: PackedWeight, x: torch.Tensor) -> Callable:
    """Return a call of ATen's operator for packed weights of these bits."""
    ops, shape = torch.ops.aten, packed.scales.shape
    if packed.bits == 4:
        source = torch.from_numpy(packed.codes).int()
        codes = ops._convert_weight_to_int4pack_for_cpu(source, 1)
        scales = torch.ones(shape[1], shape[0], 2, dtype=torch.bfloat16)
        following = copies(codes.clone, codes.nbytes)
        return lambda: ops._weight_int4pack_mm_for_cpu(x, following(), packed.group_size, scales)
    codes = torch.from_numpy(packed.codes).view(torch.int8)
    scales = torch.ones(shape[0], dtype=torch.bfloat16)
    following = copies(codes.clone, codes.nbytes)
    return lambda: ops._weight_int8pack_mm(x, following(), scales)


def paths(packed: PackedWeight, tokens: int, threads: int, level: str | None) -> dict:
    """Return the functions to time."""
    x = torch.randn(tokens, packed.in_features, generator=torch.Generator().manual_seed(0))
    half = x.bfloat16()
    weight = stream_weight(packed)
    following = copies(lambda: copy_stream(weight), weight.spec.nbytes)
    following_small = copies(lambda: copy_stream(weight, small_pages), weight.spec.nbytes)
    dense = torch.from_numpy(packed.dequantize()).bfloat16()
    following_dense = copies(dense.clone, dense.nbytes)
    probe = torch.ones(PROBE_BYTES // 4)

    def call(activations: str, weights: Callable = following) -> Callable:
        return lambda: native.matmul(
            half, weights(), activations=activations, threads=threads, level=level
        )

    return {
        **{f"native {activations}": call(activations) for activations in native.ACTIVATIONS},
        "native int16, 4 KiB pages": call("int16", following_small),
        f"torch int{packed.bits}pack bfloat16": peer(packed, half),
        "torch dense bfloat16": lambda: half @ following_dense().T,
        "read": probe.sum,
    }


def waker() -> Callable:
    """Return a call that leaves interpreter and threads as the layer before would in a model.

    Without it what follows the probe pays for fetching Python itself from memory.
    """
    weight = stream_weight(random_weight(256, 128, 4, 128))
    x, half = torch.randn(2, 128), torch.randn(64, 1024)

    def wake() -> None:
        for _ in range(3):
            native.matmul(x, weight)
            half @ half.T

    return wake


def record(times: dict[str, Timing], packed: PackedWeight, tokens: int, threads: int) -> dict:
    """Return what was measured, as plain values."""
    nbytes = stream_weight(packed).spec.nbytes
    bandwidth = PROBE_BYTES / times["read"].median_s / 1e9
    rate = nbytes / times["native int16"].median_s / 1e9
    return {
        "tokens": tokens,
        "in_features": packed.in_features,
        "out_features": packed.out_features,
        "bits": packed.bits,
        "group_size": packed.group_size,
        "threads": threads,
        "level": next(iter(native.library().levels)),
        "weight_bytes": nbytes,
        "read_gb_s": bandwidth,
        "native_int16_gb_s": rate,
        "native_int16_of_read": rate / bandwidth,
        "median_s": {name: timing.median_s for name, timing in times.items()},
        "min_s": {name: timing.min_s for name, timing in times.items()},
        "spread": {name: timing.spread for name, timing in times.items()},
    }


def show(result: dict) -> None:
    """Print one table."""
    print(
        f"\nM = {result['tokens']}; memory reads {result['read_gb_s']:.1f} GB/s, "
        f"native int16 {result['native_int16_gb_s']:.1f} GB/s "
        f"({result['native_int16_of_read']:.0%})"
    )
    print(
        f"{'path':25} {'median ms':>10} {'min ms':>8} {'max/min':>8} {'over int16':>11} {'int8':>6}"
    )
    median = result["median_s"]
    for name, seconds in median.items():
        print(
            f"{name:25} {seconds * 1e3:10.2f} {result['min_s'][name] * 1e3:8.2f} "
            f"{result['spread'][name]:8.2f} {seconds / median['native int16']:11.2f} "
            f"{seconds / median['native int8']:6.2f}"
        )


def main() -> None:
    """Measure and print one table for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], help="K and N")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--level", help="instruction set; default the best")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    in_features, out_features = options.shape
    packed = random_weight(out_features, in_features, options.bits, options.group_size)
    for tokens in options.tokens:
        functions = paths(packed, tokens, options.threads, options.level)
        times = time_in_turns(functions, rounds=options.rounds, before_each=waker())
        result = record(times, packed, tokens, options.threads)
        print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
