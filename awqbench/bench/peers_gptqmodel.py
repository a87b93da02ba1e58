"""GPTQModel's AVX-512 kernel for AWQ weights: bfloat16 activations, compiled at its first use.

Importing GPTQModel takes seconds, prints what it finds, and needs a torch of its own choice, so
that it wants an environment of its own; its compiler runs for about 75 s, once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from awqbench.bench.gemm_cases import GemmCase
from awqbench.bench.gemm_paths import Path, as_torch
from awqbench.packed import PackedWeight

_GROUPS = (16, 32, 64, 128, 256, 512)


def gptqmodel_peer() -> Path:
    """Return the kernel that GPTQModel calls AWQ_TORCH_CPU_AVX512."""
    convert = as_torch("bfloat16")
    return Path("GPTQModel", True, _prepare, convert, _why_absent, arithmetic="bfloat16")


def _why_absent(case: GemmCase) -> str:
    if find_spec("gptqmodel") is None:
        return "gptqmodel is not installed."
    if case.bits != 4 or case.group_size not in _GROUPS or case.out_features % 32:
        return (
            f"takes 4 bits, groups of {_GROUPS} and N a multiple of 32, not {case.bits} bits, "
            f"group {case.group_size}, N = {case.out_features}."
        )
    return ""


def _prepare(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    import torch
    from gptqmodel.nn_modules.qlinear.torch_cpu_avx512_awq import TorchCpuAvx512AwqLinear

    from awqbench.formats.layouts import awq

    is_usable, error = TorchCpuAvx512AwqLinear.cached_validate_once()
    if not is_usable:
        raise RuntimeError(str(error))
    multiply = TorchCpuAvx512AwqLinear.gemm_int4_qzero_group_scaled_cpu_kernel
    stored = awq.write_linear(packed)
    codes, zeros = TorchCpuAvx512AwqLinear.pack_awq_int4_kernel(
        stored["qweight"], stored["qzeros"], packed.out_features, packed.in_features
    )
    scales = torch.from_numpy(packed.scales.T.copy())
    weights = [(codes.clone(), zeros.clone(), scales.clone()) for _ in range(copies)]
    return [lambda x, w=w: multiply(x, *w, packed.group_size, None) for w in weights]
