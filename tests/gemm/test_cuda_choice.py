"""The rules by which a kernel is chosen."""

import json

import pytest

from awqbench.errors import FormatError
from awqbench.gemm import cuda_choice
from awqbench.gemm.cuda_layout import TileSpec

SPECS = {
    (k, n): TileSpec(n, k, 4, 128, "float16")
    for k, n in ((4096, 4096), (4096, 12288), (8192, 29568), (128, 16))
}
H200 = {"arch": "90a", "n_sm": 132, "is_bf16": False}
A100 = {"arch": "80", "n_sm": 108, "is_bf16": True}
T4 = {"arch": "75", "n_sm": 40, "is_bf16": False}


@pytest.mark.parametrize("spec", SPECS.values(), ids=str)
@pytest.mark.parametrize("gpu", [H200, A100, T4], ids=lambda gpu: gpu["arch"])
def test_every_number_of_tokens_is_covered(spec, gpu):
    for tokens in (1, 8, 9, 16, 17, 32, 33, 64, 100, 256, 768, 769, 4096):
        chosen = cuda_choice.choose(tokens, spec, **gpu)
        if chosen is None:
            assert tokens >= cuda_choice.dense_from(gpu["arch"])
            continue
        program, grid = chosen.program, chosen.grid
        if program.kernel == "w4a16_skinny":
            assert grid[1] * program["TOKENS"] >= tokens
            assert program["TOKENS"] <= 8 * program["MT"]
            assert grid[0] * program["WN"] >= spec.n_tiles
            assert chosen.block[0] == 32 * program["WN"] * program["WK"] and chosen.splits == 1
        else:
            assert grid[0] * program["BM"] >= tokens
            assert grid[2] == chosen.splits >= 1
            # Every split has a chunk: ceil(chunks / splits) each would leave none to the last.
            n_chunks = -(-spec.in_features // 64)
            assert (chosen.splits - 1) * -(-n_chunks // chosen.splits) < n_chunks
        assert max(grid[1:]) <= 65535


def test_the_kernel_follows_the_architecture():
    spec = SPECS[4096, 4096]
    assert cuda_choice.choose(64, spec, **H200).program.kernel == "w4a16_wgmma"
    assert cuda_choice.choose(64, spec, **A100).program.kernel == "w4a16_mma"
    assert cuda_choice.choose(64, spec, **T4) is None


def test_large_weights_share_tokens_and_small_ones_fill_the_gpu():
    small = cuda_choice.choose(1, SPECS[4096, 4096], **H200)
    large = cuda_choice.choose(1, SPECS[8192, 29568], **H200)
    assert small.program["WN"] == 1 < large.program["WN"]
    assert small.grid[0] == 256 and large.grid[0] >= 2 * 132
    assert cuda_choice.choose(64, SPECS[4096, 4096], **H200).splits > 1
    assert cuda_choice.choose(64, SPECS[8192, 29568], **H200).splits == 1


def test_tokens_are_not_padded_for_nothing():
    spec = SPECS[8192, 29568]
    assert cuda_choice.choose(64, spec, **A100).program["BM"] == 64
    assert cuda_choice.choose(128, spec, **A100).program["BM"] == 128
    assert cuda_choice.choose(40, spec, **A100).program["BM"] == 64


def test_measured_choices_are_read_and_a_damaged_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    cuda_choice.measured.cache_clear()
    try:
        assert cuda_choice.measured() == {}
        cuda_choice.measured.cache_clear()
        cuda_choice.measured_file().write_text(json.dumps({"a": "dense"}))
        assert cuda_choice.measured() == {"a": "dense"}
        cuda_choice.measured.cache_clear()
        cuda_choice.measured_file().write_text("{")
        with pytest.raises(FormatError, match="delete it"):
            cuda_choice.measured()
        cuda_choice.measured_file().write_text("[1]")
        with pytest.raises(FormatError, match="not a JSON object"):
            cuda_choice.measured()
    finally:
        cuda_choice.measured.cache_clear()


def test_a_measured_choice_is_found_by_its_text_or_passed_over():
    spec = SPECS[4096, 4096]
    for launch in cuda_choice.candidates(64, spec, **H200):
        assert cuda_choice.named(str(launch.program), 64, spec, **H200) == launch
    assert cuda_choice.named("w4a16_skinny OF=another version", 64, spec, **H200) is None


def test_keys_gather_tokens_by_powers_of_two():
    keys = [cuda_choice.key_of("G", m, SPECS[128, 16], is_bf16=True) for m in (1, 2, 3, 4, 5, 8)]
    assert [key.rsplit("<=")[1] for key in keys] == ["1", "2", "4", "4", "8", "8"]
