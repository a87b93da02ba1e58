"""ggml as a peer: what it is given, and its product where its libraries are named."""

import os

import numpy as np
import pytest

from awqbench.bench import peers_ggml
from awqbench.bench.gemm_cases import GemmCase, exact_product, random_weight, relative_error
from awqbench.bench.peers import peer_paths
from awqbench.errors import BackendError


@pytest.fixture
def path():
    (found,) = (path for path in peer_paths() if path.name == "ggml Q4_K")
    return found


def unpack_q4_k(blocks):
    """Decode as ggml's dequantize_row_q4_K does, one block of 32 after the other."""
    steps = blocks[..., :4].copy().view(np.float16).astype(np.float32)
    scales, codes = blocks[..., 4:16].astype(int), blocks[..., 16:].astype(int)
    rows = []
    for j in range(8):
        if j < 4:
            share, minimum = scales[..., j] & 63, scales[..., j + 4] & 63
        else:
            share = scales[..., j + 4] & 15 | scales[..., j - 4] >> 6 << 4
            minimum = scales[..., j + 4] >> 4 | scales[..., j] >> 6 << 4
        part = codes[..., 32 * (j // 2) : 32 * (j // 2) + 32] >> 4 * (j % 2) & 15
        rows.append(
            (steps[..., 0] * share)[..., None] * part - (steps[..., 1] * minimum)[..., None]
        )
    return np.concatenate(rows, axis=-1).reshape(len(blocks), -1)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_q4_k_keeps_codes_and_rounds_scales_to_6_bits(group_size):
    packed = random_weight(GemmCase(512, 40, 1, 4, group_size))
    weight = packed.dequantize()
    found = unpack_q4_k(peers_ggml.pack_q4_k(packed))
    # Half a 63rd of the largest scale for each code, and of the largest minimum.
    limit = (15 * packed.scales.max() + (packed.scales * packed.zeros).max()) / 126 * 1.01
    assert np.abs(found - weight).max() < limit
    assert relative_error(found, weight) < 0.02


def test_q4_k_of_zeros_is_zero():
    packed = random_weight(GemmCase(256, 8, 1, 4, 64))
    packed.zeros[:] = 0
    packed.scales[0] = 0
    found = unpack_q4_k(peers_ggml.pack_q4_k(packed))
    assert not found[0].any() and found[1].any() and np.isfinite(found).all()


def test_it_says_where_ggml_is_looked_for(path, monkeypatch, tmp_path):
    monkeypatch.delenv(peers_ggml.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(peers_ggml, "find_spec", lambda name: None)
    assert "AWQBENCH_GGML" in path.why_absent(GemmCase(256, 8))
    monkeypatch.setenv(peers_ggml.FOLDER_VARIABLE, str(tmp_path))
    assert str(tmp_path) in path.why_absent(GemmCase(256, 8))
    for name in ("libggml-base.so", "libggml-cpu.so"):
        (tmp_path / name).write_bytes(b"not a library")
    assert path.why_absent(GemmCase(256, 8)) == ""
    assert "K a multiple of 256" in path.why_absent(GemmCase(128, 8))
    assert "4 bits" in path.why_absent(GemmCase(256, 8, bits=8))
    with pytest.raises(BackendError, match="cannot be loaded"):
        path.prepare(random_weight(GemmCase(256, 8)), 1)


@pytest.mark.skipif(
    peers_ggml.FOLDER_VARIABLE not in os.environ, reason="no folder of ggml's libraries is named"
)
@pytest.mark.parametrize("columns", [40, 37])  # repacked by eights, and as they are
def test_it_computes_the_product(path, columns):
    packed = random_weight(GemmCase(512, columns))
    calls = path.prepare(packed, 2)
    for m in (1, 3, 17):
        x = np.random.default_rng(m).standard_normal((m, 512), np.float32)
        tokens = path.convert(x)
        for call in [*calls, *calls]:
            assert relative_error(call(tokens), exact_product(x, packed)) < 2e-2
