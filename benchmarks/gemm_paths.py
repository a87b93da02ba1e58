"""Compute paths for a packed weight against a dense one, in turns, on this machine.

Prints, for each number of tokens, the time of every path relative to dense float32 NumPy
(row 0), with the spread and a probe of the memory taken in the same run.

    python benchmarks/gemm_paths.py [--threads 1] [--rounds 7] [--tokens 1 16 512]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from awqbench.bench.timing import ReadProbe, time_in_turns
from awqbench.gemm import gemm
from awqbench.packed import PackedWeight, quantize_weight


def paths(x: np.ndarray, dense: np.ndarray, packed: PackedWeight) -> dict:
    """Return the functions to time; all but the dense ones read the packed weight."""
    tensor, weight = torch.from_numpy(x), torch.from_numpy(dense)
    tensor16, weight16 = tensor.bfloat16(), weight.bfloat16()
    return {
        "numpy dense float32": lambda: x @ dense.T,
        "numpy": lambda: gemm(x, packed, backend="numpy"),
        "numexpr": lambda: gemm(x, packed, backend="numexpr"),
        "torch float32": lambda: gemm(tensor, packed),
        "torch bfloat16": lambda: gemm(tensor16, packed),
        "torch dense float32": lambda: tensor @ weight.T,
        "torch dense bfloat16": lambda: tensor16 @ weight16.T,
    }


def main() -> None:
    """Measure and print one table for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="K and N")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((options.size, options.size), dtype=np.float32)
    packed = quantize_weight(dense, group_size=options.group_size, scale_dtype="float16")
    dense = packed.dequantize()
    probe = ReadProbe()
    with threadpool_limits(options.threads):
        print(f"K = N = {options.size}, group {options.group_size}, {options.threads} thread(s)")
        for tokens in options.tokens:
            x = rng.standard_normal((tokens, options.size), dtype=np.float32)
            functions = paths(x, dense, packed)
            before = probe.bandwidth_gb_s()
            # Reading 256 MB before each call: a model's weights come from memory.
            times = time_in_turns(functions, rounds=options.rounds, before_each=probe.read)
            after = probe.bandwidth_gb_s()
            print(f"\nM = {tokens}; memory reads {before:.1f} GB/s before, {after:.1f} after")
            print(f"{'path':22} {'median ms':>10} {'min ms':>8} {'max/min':>8} {'ratio':>7}")
            reference = times["numpy dense float32"].median_s
            for name, timing in times.items():
                print(
                    f"{name:22} {timing.median_s * 1e3:10.2f} {timing.min_s * 1e3:8.2f} "
                    f"{timing.spread:8.2f} {timing.median_s / reference:7.2f}"
                )


if __name__ == "__main__":
    main()
