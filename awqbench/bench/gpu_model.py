"""The least time of a product on an NVIDIA GPU by three limits, for the kernel that is chosen.

A model, not a measurement: bytes over the rate of memory, multiplications over the rate of the
tensor cores, and instructions, counted by the interpreter, over what multiprocessors issue.
Latency, launches and imperfect overlap come on top; instructions are PTX, of which ptxas may
merge or split some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.bench.gemm_cases import GemmCase, make_cases
from awqbench.errors import ParameterError
from awqbench.gemm import cuda_choice
from awqbench.gemm.cuda_layout import GROUP_MULTIPLE, TileSpec

if TYPE_CHECKING:
    import pandas as pd

# A multiprocessor issues at most one instruction a clock from each of its four schedulers.
ISSUED_PER_CLOCK = 4
DECODED = "decode + cuBLAS"
# Its tensor cores take half as many inputs at once: counts of the others are not its own.
NOT_COUNTED = "75"
_LANES = 32


class GpuLimits(NamedTuple):
    """A GPU by its limits: `bandwidth_gb_s` of a copy, bytes read plus written."""

    arch: str
    n_sm: int
    clock_ghz: float
    bandwidth_gb_s: float
    peak_tflop_s: float

    def issued_per_s(self) -> float:
        """Instructions that all multiprocessors issue in a second, at most."""
        return ISSUED_PER_CLOCK * self.n_sm * self.clock_ghz * 1e9

    def instructions_for_a_word(self, bits: int, bytes_per_weight: float) -> float:
        """Return how many instructions a warp may take for a 32-bit word of codes in each lane.

        With more, instructions take longer than reading the weights.
        """
        words_per_s = self.bandwidth_gb_s * 1e9 / bytes_per_weight / warp_weights(bits)
        return self.issued_per_s() / words_per_s


# Nominal clock, memory and dense 16-bit tensor cores, by common knowledge and unchecked: pass
# measured ones where it matters. The H200's last two are what a copy of 8 GB and a product of
# 8192 x 8192 matrices once took on one.
GPUS = {
    "T4": GpuLimits("75", 40, 1.59, 320, 65),
    "A100": GpuLimits("80", 108, 1.41, 2039, 312),
    "L4": GpuLimits("89", 58, 2.04, 300, 121),
    "RTX 4090": GpuLimits("89", 128, 2.52, 1008, 165),
    "H100": GpuLimits("90a", 132, 1.83, 3350, 989),
    "H200": GpuLimits("90a", 132, 1.98, 4300, 790),
}


def gpu_limits(name: str, *, bandwidth_gb_s: float = 0, peak_tflop_s: float = 0) -> GpuLimits:
    """Return the limits of a GPU, with measured ones in place of those in `GPUS`.

    Parameters
    ----------
    name : str
        A key of `GPUS`.
    bandwidth_gb_s, peak_tflop_s : float
        0 for those in `GPUS`.

    Raises
    ------
    ParameterError
        If the name is unknown, or a limit is negative.
    """
    if name not in GPUS:
        raise ParameterError(f"gpu {name!r} is none of {', '.join(GPUS)}.")
    given = {"bandwidth_gb_s": bandwidth_gb_s, "peak_tflop_s": peak_tflop_s}
    for key, value in given.items():
        if not 0 <= value < float("inf"):
            raise ParameterError(f"{key} is {value}; it must be above 0, or 0 for {name}'s own.")
    return GPUS[name]._replace(**{key: value for key, value in given.items() if value})


def warp_weights(bits: int) -> int:
    """Return the weights that a warp holds in one 32-bit word of each lane."""
    return _LANES * 32 // bits


def counts_by_program(traffic: pd.DataFrame) -> dict[str, float]:
    """Return instructions for a word and one block of tokens, by program.

    Parameters
    ----------
    traffic : DataFrame
        Rows of `ptx_traffic`.
    """
    found: dict[str, float] = {}
    for row in traffic.to_dict(orient="records"):
        macros = dict(part.split("=") for part in row["program"].split()[1:])
        block = int(macros.get("TOKENS", macros.get("BM", row["m"])))
        per_block = row["instructions_per_word"] / -(-row["m"] // block)
        # A block that is not full takes no more than a full one.
        found[row["program"]] = max(per_block, found.get(row["program"], 0.0))
    return found


def predict(
    shapes: Sequence[str],
    tokens: Sequence[int],
    limits: GpuLimits,
    counts: Mapping[str, float],
    *,
    bits: int = 4,
    group_size: int = 128,
    dtype: str = "float16",
) -> pd.DataFrame:
    """Return the chosen kernel and its limits for every shape and number of tokens.

    Parameters
    ----------
    shapes : sequence of str
        KxN, as `parse_shape` takes them.
    tokens : sequence of int
    limits : GpuLimits
    counts : mapping
        Of `counts_by_program`; a program that is not in it has no limit by instructions (NaN).
    bits : {4, 8}
    group_size : int
        A multiple of 32, or -1 for whole rows.
    dtype : {"float16", "bfloat16"}
        Of the tokens.

    Returns
    -------
    DataFrame
        Seconds by each limit, `floor_s` the largest of them or the sum over steps, `bound` its
        name, `fp16_floor_s` the least time of weights that are not quantized, and `ratio`, the
        latter over `floor_s`.

    Raises
    ------
    ParameterError, AlignmentError
        If a limit, a shape, bits or the group size is not usable.
    """
    import pandas as pd

    if bits not in (4, 8):
        raise ParameterError(f"bits is {bits}; the tiles hold codes of 4 or 8 bits.")
    if dtype not in ("float16", "bfloat16"):
        raise ParameterError(f"dtype {dtype!r} is neither float16 nor bfloat16.")
    if dtype == "bfloat16" and limits.arch == "75":
        raise ParameterError("sm_75 has no bfloat16; choose float16.")
    if group_size != -1 and group_size % GROUP_MULTIPLE:
        raise ParameterError(f"group_size is {group_size}, not a multiple of {GROUP_MULTIPLE}.")
    counts = {} if limits.arch == NOT_COUNTED else counts
    cases = make_cases(shapes, tokens, bits=bits, group_size=group_size)
    rows = [_row(case, limits, counts, is_bf16=dtype == "bfloat16") for case in cases]
    return pd.DataFrame(rows)


def _row(
    case: GemmCase, limits: GpuLimits, counts: Mapping[str, float], *, is_bf16: bool
) -> dict[str, Any]:
    group = 0 if case.group_size == case.in_features else case.group_size
    spec = TileSpec(case.out_features, case.in_features, case.bits, group, "float16")
    settings = {"arch": limits.arch, "n_sm": limits.n_sm, "is_bf16": is_bf16}
    launch = cuda_choice.choose(case.tokens, spec, **settings)
    bandwidth, peak = limits.bandwidth_gb_s * 1e9, limits.peak_tflop_s * 1e12
    dense_bytes, vectors = 2 * case.in_features * case.out_features, _vector_bytes(case)
    fp16_floor = max((dense_bytes + vectors) / bandwidth, case.flop / peak)
    row = {"shape": case.shape, "tokens": case.tokens}
    if launch is None:
        decoding = (spec.nbytes + dense_bytes) / bandwidth
        times = {"memory": (dense_bytes + vectors) / bandwidth, "tensor cores": case.flop / peak}
        row |= {"kernel": DECODED, "program": "", "blocks_per_sm": float("nan")}
    else:
        decoding = 0.0
        times = _fused_times(case, spec, launch, limits, counts)
        blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
        row |= {"kernel": launch.program.kernel, "program": str(launch.program)}
        row |= {"blocks_per_sm": blocks / limits.n_sm}
    bound = max(times, key=lambda name: times[name] if times[name] == times[name] else 0.0)
    floor = decoding + times[bound]
    return row | {
        "memory_s": decoding + times["memory"],
        "tensor_s": times["tensor cores"],
        "issue_s": times.get("instructions", float("nan")),
        "bound": bound,
        "floor_s": floor,
        "fp16_floor_s": fp16_floor,
        "ratio": fp16_floor / floor,
    }


def _fused_times(
    case: GemmCase,
    spec: TileSpec,
    launch: cuda_choice.Launch,
    limits: GpuLimits,
    counts: Mapping[str, float],
) -> dict[str, float]:
    """Return seconds by each limit of a kernel that decodes as it multiplies."""
    is_skinny = launch.program.kernel == "w4a16_skinny"
    # A tensor-core instruction takes 8 tokens at least, a block all of its own.
    in_block = 8 * launch.program["MT"] if is_skinny else launch.program["BM"]
    blocks = launch.grid[1] if is_skinny else launch.grid[0]
    padded = spec.n_tiles * spec.k_tiles * 16 * 128
    words = padded / warp_weights(case.bits)
    instructions = counts.get(str(launch.program), float("nan")) * words * blocks
    # (Sums of splits, and weights that a second block of tokens takes, can stay in the cache.)
    return {
        "memory": (spec.nbytes + _vector_bytes(case)) / (limits.bandwidth_gb_s * 1e9),
        "tensor cores": 2 * in_block * blocks * padded / (limits.peak_tflop_s * 1e12),
        "instructions": instructions / limits.issued_per_s(),
    }


def _vector_bytes(case: GemmCase) -> int:
    """Return the bytes of tokens and of the product, 16 bits each."""
    return 2 * case.tokens * (case.in_features + case.out_features)


def microseconds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one shape's rows of `predict` by M, times in microseconds, for reading."""
    names = {"memory_s": "memory", "tensor_s": "tensor", "issue_s": "issue"}
    names |= {"floor_s": "floor", "fp16_floor_s": "fp16"}
    times = (table[list(names)] * 1e6).rename(columns=names).round(1)
    kernel = table["kernel"].str.removeprefix("w4a16_")
    return table[["tokens", "bound"]].assign(kernel=kernel).join(times).set_index("tokens")
