"""ggml, the library under llama.cpp: weights as Q4_K, activations rounded to 8 bits (Q8_K).

A product of two tensors is called through ggml's C functions: no model and no Python package is
needed, but its shared libraries are. ``$AWQBENCH_GGML`` names their folder: `bins/linux-x64` of
npm's @node-llama-cpp/linux-x64, an unpacked release of llama.cpp, or `lib` of llama-cpp-python,
which is found by itself. Of builds for several processors ggml's own score chooses, and weights
are repacked as ggml would do it when it loads a model.

Q4_K holds 4.5 bits a weight: scales and zero points of groups become 6-bit shares of one for 256
channels, so that its error is that of 8-bit activations and of this rounding (about 1e-2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from awqbench.bench.gemm_cases import GemmCase
from awqbench.bench.gemm_paths import Path
from awqbench.bench.ggml import Q4_K, Product, Tokens, has_libraries, load_ggml
from awqbench.packed import PackedWeight

FOLDER_VARIABLE = "AWQBENCH_GGML"
_GROUPS = (32, 64, 128, 256)
_BLOCK, _SUB_BLOCK = 256, 32  # channels of Q4_K that share a scale, and a 6-bit share of it


def ggml_peer() -> Path:
    """Return ggml's product with Q4_K weights, on torch's number of threads."""
    return Path("ggml Q4_K", True, _prepare, Tokens, _why_absent)


def _folder() -> FilePath | None:
    """Return where ggml's libraries should be, if anything says so."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return FilePath(chosen)
    found = find_spec("llama_cpp")
    return FilePath(found.origin).parent / "lib" if found and found.origin else None


def _why_absent(case: GemmCase) -> str:
    folder = _folder()
    if folder is None:
        return f"no ggml: set ${FOLDER_VARIABLE} to the folder of its shared libraries."
    if not has_libraries(folder):
        return f"no libggml-base and libggml-cpu are in {folder}."
    if case.bits != 4 or case.group_size not in _GROUPS or case.in_features % _BLOCK:
        return (
            f"takes 4 bits, groups of {_GROUPS} and K a multiple of {_BLOCK}, not {case.bits} "
            f"bits, group {case.group_size}, K = {case.in_features}."
        )
    return ""


def pack_q4_k(packed: PackedWeight) -> np.ndarray:
    """Lay a weight out as Q4_K, with its codes as they are.

    Parameters
    ----------
    packed : PackedWeight
        4 bits, groups in order of a multiple of 32 channels, K a multiple of 256.

    Returns
    -------
    (N, K / 256, 144) ndarray of uint8
        Of each 256 channels: d and dmin in float16; eight 6-bit shares s of d and m of dmin in
        12 bytes; codes, 32 channels low and the 32 after them high. A weight is
        d s code - dmin m.
    """
    n, n_blocks = packed.out_features, packed.in_features // _BLOCK
    repeats = packed.group_size // _SUB_BLOCK
    blocks = np.empty((n, n_blocks, 144), np.uint8)
    shares = []
    for at, values in ((0, packed.scales), (2, packed.scales * packed.zeros)):
        values = np.repeat(values, repeats, axis=1).reshape(n, n_blocks, 8)
        steps = (values.max(axis=-1, keepdims=True) / 63).astype(np.float16)
        blocks[..., at : at + 2] = steps.view(np.uint8)
        steps = np.where(steps > 0, steps, 1).astype(np.float32)
        shares.append(np.rint(values / steps).clip(0, 63).astype(np.uint8))
    scales, minima = shares
    blocks[..., 4:8] = scales[..., :4] | scales[..., 4:] >> 4 << 6
    blocks[..., 8:12] = minima[..., :4] | minima[..., 4:] >> 4 << 6
    blocks[..., 12:16] = scales[..., 4:] & 15 | (minima[..., 4:] & 15) << 4
    codes = packed.codes.reshape(n, n_blocks, 4, 2, _SUB_BLOCK)
    blocks[..., 16:] = (codes[..., 0, :] | codes[..., 1, :] << 4).reshape(n, n_blocks, 128)
    return blocks


def _prepare(packed: PackedWeight, copies: int) -> list[Callable[[Any], Any]]:
    import torch

    ggml = load_ggml(_folder(), torch.get_num_threads())
    blocks = pack_q4_k(packed)
    return [Product(ggml, Q4_K, blocks, packed.in_features) for _ in range(copies)]
