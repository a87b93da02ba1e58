"""The AutoAWQ GEMM layout against tensors that the peers' own tools wrote."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts.awq import quantization_config, read_linear, write_linear
from awqbench.formats.layouts.packing import pack_awq
from awqbench.packed import quantize_weight

TESTS = Path(__file__).parents[1]
OWN_CASES = sorted((TESTS / "data" / "conformance").glob("*.safetensors"))
# A wider collection may lie beside the repository; these tests stand without it.
COLLECTION = TESTS.parents[1] / "shared" / "conformance" / "linear"
WIDER_CASES = [
    *sorted((COLLECTION / "awq_gemm").glob("*.safetensors")),
    *sorted((COLLECTION / "gptqmodel_awq").glob("*.safetensors")),
] or [pytest.param(None, marks=pytest.mark.skip(reason="no wider collection"), id="wider")]


def bits_of(path):
    return int(path.stem[1]) if path.stem.startswith("w") else 4


@pytest.fixture(params=[*OWN_CASES, *WIDER_CASES], ids=lambda path: path.stem)
def case(request):
    """Return the bits and tensors of one linear."""
    return bits_of(request.param), load_file(request.param)


def linear_of(tensors):
    return {part: tensors[part] for part in ("qweight", "qzeros", "scales")}


def test_decodes_bit_for_bit(case):
    bits, tensors = case
    packed = read_linear(linear_of(tensors), bits=bits, name="l")
    expected = tensors["dequant_kn"]
    decoded = torch.from_numpy(packed.dequantize().T.copy()).to(expected.dtype)
    assert torch.equal(decoded, expected)
    assert packed.scale_dtype == str(tensors["scales"].dtype).removeprefix("torch.")


def test_zeros_and_scales_are_the_tool_s(case):
    bits, tensors = case
    packed = read_linear(linear_of(tensors), bits=bits)
    np.testing.assert_array_equal(packed.zeros, tensors["zeros_in"].numpy())
    np.testing.assert_array_equal(packed.scales, tensors["scales_in"].float().numpy())
    assert packed.group_size * packed.n_groups == packed.in_features
    assert packed.codes.max() < 2**bits


def test_written_tensors_are_the_tool_s(case):
    bits, tensors = case
    packed = read_linear(linear_of(tensors), bits=bits, name="l")
    if bits != 4:
        with pytest.raises(FormatError, match=f"l has {bits} bits; .* 4 bits only"):
            write_linear(packed)
        return
    written = write_linear(packed)
    assert set(written) == {"qweight", "qzeros", "scales"}
    for part, tensor in written.items():
        assert tensor.dtype == tensors[part].dtype and torch.equal(tensor, tensors[part])


def test_config_is_as_autoawq_writes_it():
    assert quantization_config(bits=4, group_size=64, modules_to_not_convert=None) == {
        "bits": 4,
        "group_size": 64,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def small(bits=4, n=16, k=64, **kwargs):
    weight = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    return quantize_weight(
        weight, bits, 32, **{"scale_dtype": "float16", "name": "up_proj"} | kwargs
    )


@pytest.mark.parametrize("zero_point", [True, False])
def test_own_weights_survive_the_disk(zero_point):
    packed = small(zero_point=zero_point)
    back = read_linear(write_linear(packed), group_size=32, name="up_proj")
    for field in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(back, field), getattr(packed, field))
    assert (back.bits, back.group_size, back.name) == (4, 32, "up_proj")


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_other_widths_are_not_written(bits):
    with pytest.raises(FormatError, match=f"up_proj has {bits} bits"):
        write_linear(small(bits))


def test_activation_order_is_not_written():
    packed = dataclasses.replace(small(), g_idx=np.arange(64, dtype=np.int32) % 2)
    with pytest.raises(FormatError, match="up_proj.*g_idx"):
        write_linear(packed)


@pytest.mark.parametrize("n", [12, 1, 31])
def test_rows_that_do_not_fill_words_are_not_written(n):
    with pytest.raises(AlignmentError) as caught:
        write_linear(small(n=n))
    for part in ("up_proj", f"out_features is {n}", f"remainder {n % 8}", f"pad by {8 - n % 8} "):
        assert part in str(caught.value)


def test_short_last_group_is_not_written():
    packed = dataclasses.replace(small(), group_size=48)
    with pytest.raises(AlignmentError, match="up_proj: in_features 64 .* group_size 48"):
        write_linear(packed)


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("factor", [1e-9, 1e9, 1 / 3])
def test_scales_that_float16_cannot_hold_are_not_written(scale_dtype, factor):
    weight = factor * np.random.default_rng(0).standard_normal((8, 64))
    packed = quantize_weight(weight, 4, 32, scale_dtype=scale_dtype, name="up_proj")
    if scale_dtype == "bfloat16" and factor == 1 / 3:  # 8 bits of significand fit in 11
        assert write_linear(packed)["scales"].dtype == torch.float16
        return
    with pytest.raises(FormatError, match=f"up_proj: scales are {scale_dtype}.*float16"):
        write_linear(packed)


def test_scales_that_are_not_finite_are_not_written():
    packed = small()
    packed.scales[1, 0] = np.nan
    with pytest.raises(FormatError, match="up_proj"):
        write_linear(packed)


def test_codes_beyond_four_bits_are_not_written():
    packed = small()
    packed.codes[0, 0] = 16
    with pytest.raises(ValueError, match="value 16"):
        write_linear(packed)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_missing_tensor(part):
    tensors = write_linear(small())
    del tensors[part]
    with pytest.raises(FormatError, match=f"l: tensor l.{part} is missing"):
        read_linear(tensors, name="l")


@pytest.mark.parametrize("part", ["qweight", "qzeros"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.float32])
def test_words_of_another_dtype(part, dtype):
    tensors = write_linear(small())
    tensors[part] = tensors[part].to(dtype)
    with pytest.raises(FormatError, match=f"l.{part} is {str(dtype)[6:]}"):
        read_linear(tensors, name="l")


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.float8_e4m3fn])
def test_scales_of_another_dtype(dtype):
    tensors = write_linear(small())
    tensors["scales"] = tensors["scales"].to(dtype)
    with pytest.raises(FormatError, match="l.scales is "):
        read_linear(tensors, name="l")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_keep_their_own_dtype(dtype):
    tensors = write_linear(small(scale_dtype="bfloat16"))
    tensors["scales"] = tensors["scales"].to(dtype)
    assert read_linear(tensors).scale_dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("qweight", lambda t: t[:, :1]),
        ("qweight", lambda t: t.T.contiguous()),
        ("qweight", lambda t: t.flatten()),
        ("qweight", lambda t: t[:63]),
        ("qweight", lambda t: t[:0]),
        ("qzeros", lambda t: t[:1]),
        ("qzeros", lambda t: t[:, :1]),
        ("qzeros", lambda t: t[0]),
        ("scales", lambda t: t[:, :8]),
        ("scales", lambda t: t[:0]),
        ("scales", lambda t: t[0]),
        ("scales", lambda t: t[None]),
    ],
)
def test_impossible_shapes(part, change):
    tensors = write_linear(small())
    tensors[part] = change(tensors[part])
    with pytest.raises(FormatError, match=r"^l[:.]"):
        read_linear(tensors, group_size=32, name="l")


def test_columns_that_do_not_fill_words_of_four_bits():
    tensors = write_linear(small())
    tensors["scales"] = tensors["scales"][:, :12].contiguous()
    with pytest.raises(FormatError, match="l: scales .*N = 12, not a multiple of 8"):
        read_linear(tensors, name="l")


def test_group_size_of_the_config_is_compared():
    tensors = write_linear(small())
    for fine in (None, 32):
        assert read_linear(tensors, group_size=fine).group_size == 32
    for wrong in (16, 128, -1, 0):
        with pytest.raises(FormatError, match=f"config says group_size {wrong}, tensors say 32"):
            read_linear(tensors, group_size=wrong, name="l")
    whole_rows = write_linear(small(k=32))
    for fine in (-1, 32, 128):
        assert read_linear(whole_rows, group_size=fine).group_size == 32


def test_high_nibbles_are_not_read_as_signs():
    tensors = write_linear(small(n=8))
    tensors["qweight"] = torch.full_like(tensors["qweight"], -1)
    tensors["qzeros"] = torch.from_numpy(pack_awq(np.zeros((2, 8), np.uint8)))
    packed = read_linear(tensors)
    assert (packed.codes == 15).all() and (packed.zeros == 0).all()
