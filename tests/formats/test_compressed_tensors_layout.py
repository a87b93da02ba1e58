"""The pack-quantized layout against tensors that compressed-tensors itself wrote."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from awqbench.errors import AlignmentError, FormatError, NonFiniteError
from awqbench.formats.layouts.compressed_tensors import (
    OPTIONAL,
    TENSORS,
    quantization_config,
    read_linear,
    write_linear,
)
from awqbench.packed import PackedWeight, quantize_weight

TESTS = Path(__file__).parents[1]
OWN_CASES = sorted((TESTS / "data" / "compressed_tensors").glob("*.safetensors"))
# A wider collection may lie beside the repository; these tests stand without it.
COLLECTION = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no wider collection"), id="wider")
WIDER_CASES = [
    *sorted((COLLECTION / "linear" / "compressed_tensors").glob("*.safetensors")),
    *sorted((COLLECTION / "linear" / "compressed_tensors_0_12").glob("*.safetensors")),
] or [NONE]
MODELS = sorted((COLLECTION / "model").glob("llmc_*")) or [NONE]


@pytest.fixture(params=[*OWN_CASES, *WIDER_CASES], ids=lambda path: path.stem)
def case(request):
    """Return bits, configured group size, and the tensors of one linear."""
    stem = request.param.stem
    group_size = next(part[1:] for part in stem.split("_") if part.startswith("g"))
    return int(stem[1]), -1 if group_size == "None" else int(group_size), load_file(request.param)


def parts_of(tensors):
    return {part: tensors[part] for part in (*TENSORS, *OPTIONAL) if part in tensors}


def assert_same_bits(found, expected):
    as_int = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    assert found.dtype == expected.dtype
    assert torch.equal(found.view(as_int), expected.view(as_int))


def assert_same_weight(found, expected):
    for field in dataclasses.fields(PackedWeight):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name


def test_decodes_bit_for_bit(case):
    bits, group_size, tensors = case
    packed = read_linear(parts_of(tensors), bits=bits, group_size=group_size, name="l")
    expected = tensors["dequant_nk"]
    assert_same_bits(torch.from_numpy(packed.dequantize()).to(expected.dtype), expected)
    signed = packed.zeros.astype(np.int16) - 2 ** (bits - 1)
    np.testing.assert_array_equal(signed, tensors["zero_point_in"].numpy())
    assert packed.zero_point == ("weight_zero_point" in tensors)
    assert (packed.g_idx is not None) == ("weight_g_idx" in tensors)
    assert packed.scale_dtype == str(tensors["weight_scale"].dtype).removeprefix("torch.")
    assert_same_weight(read_linear(parts_of(tensors), bits=bits, name="l"), packed)


def test_written_tensors_are_the_tool_s(case):
    bits, group_size, tensors = case
    parts = parts_of(tensors)
    packed = read_linear(parts, bits=bits, name="l")
    if packed.g_idx is not None:
        with pytest.raises(FormatError, match=r"l is in activation order .*0\.19; quantize"):
            write_linear(packed)
        return
    written = write_linear(packed)
    assert set(written) == set(parts)
    was_padded = parts["weight_packed"].shape[1] != -(-packed.in_features * bits // 32)
    for part, tensor in written.items():
        assert tensor.dtype == parts[part].dtype and tensor.is_contiguous()
        if was_padded and part in ("weight_packed", "weight_zero_point"):
            assert tensor.shape != parts[part].shape
        else:
            assert torch.equal(tensor, parts[part])
    assert_same_weight(read_linear(written, bits=bits, name="l"), packed)


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_linears_of_a_model_decode_bit_for_bit(folder):
    tensors = load_file(folder / "model.safetensors")
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = section["config_groups"]["group_0"]["weights"]
    group_size = scheme["group_size"] or -1
    for name, expected in load_file(folder / "decompressed_layer0.safetensors").items():
        module = name.removesuffix(".weight")
        parts = parts_of({n.removeprefix(f"{module}."): t for n, t in tensors.items()})
        packed = read_linear(parts, bits=scheme["num_bits"], group_size=group_size, name=module)
        assert_same_bits(torch.from_numpy(packed.dequantize()).to(expected.dtype), expected)
        for part, tensor in write_linear(packed).items():
            assert torch.equal(tensor, parts[part])


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_config_is_as_llm_compressor_writes_it(folder):
    expected = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = expected["config_groups"]["group_0"]["weights"]
    found = quantization_config(
        bits=scheme["num_bits"],
        group_size=scheme["group_size"] or -1,
        zero_point=not scheme["symmetric"],
        modules_to_not_convert=["lm_head"],
    )
    # "weight" is how the codes were found; they are read the same way.
    found["config_groups"]["group_0"]["weights"]["actorder"] = scheme["actorder"]
    assert found == expected


def test_config_of_whole_rows():
    section = quantization_config(
        bits=8, group_size=-1, zero_point=False, modules_to_not_convert=None
    )
    scheme = section["config_groups"]["group_0"]["weights"]
    assert (scheme["strategy"], scheme["group_size"], scheme["num_bits"]) == ("channel", None, 8)
    assert scheme["symmetric"] is True and scheme["zp_dtype"] is None
    assert section["ignore"] == [] and section["format"] == "pack-quantized"
    json.dumps(section)


def random_weight(bits, n, k, *, group_size, zero_point=True, scale_dtype="float16", seed=0):
    rng = np.random.default_rng(seed)
    n_groups = -(-k // group_size)
    zeros = rng.integers(0, 2**bits, (n, n_groups), dtype=np.uint8)
    scales = rng.integers(1, 128, (n, n_groups)).astype(np.float32) / 1024
    return PackedWeight(
        codes=rng.integers(0, 2**bits, (n, k), dtype=np.uint8),
        scales=scales,  # 7 bits of significand: fit every dtype
        zeros=zeros if zero_point else np.full_like(zeros, 2 ** (bits - 1)),
        bits=bits,
        group_size=group_size,
        zero_point=zero_point,
        scale_dtype=scale_dtype,
        name="up_proj",
    )


@given(
    bits=st.integers(2, 8),
    n=st.integers(1, 40),
    group_size=st.integers(1, 40),
    n_groups=st.integers(1, 4),
    zero_point=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_own_weights_survive_the_disk(bits, n, group_size, n_groups, **kwargs):
    packed = random_weight(bits, n, group_size * n_groups, group_size=group_size, **kwargs)
    tensors = write_linear(packed)
    assert str(tensors["weight_scale"].dtype) == f"torch.{kwargs['scale_dtype']}"
    for stated in (None, group_size):
        back = read_linear(tensors, bits=bits, group_size=stated, name="up_proj")
        assert_same_weight(back, packed)


def padded_words(values, bits):
    """Pack the last axis as before 0.18, by Python integers."""
    per_word = 32 // bits
    rows = []
    for row in values.tolist():
        chunks = [row[i : i + per_word] for i in range(0, len(row), per_word)]
        rows.append([sum(v << (bits * i) for i, v in enumerate(chunk)) for chunk in chunks])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


@given(
    bits=st.integers(2, 8),
    n=st.integers(24, 40),
    k=st.integers(11, 70),
    zero_point=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_words_of_before_0_18(bits, n, k, zero_point, seed):
    """Also where both widths agree: the contents decide, here of 24 rows or more.

    Rows that fit one word (10 values of 3 bits) are the same either way; then only the zero
    points could tell, and a few of those do not.
    """
    packed = random_weight(bits, n, k, group_size=k, zero_point=zero_point, seed=seed)
    tensors = write_linear(packed)
    tensors["weight_packed"] = padded_words(packed.codes, bits)
    if zero_point:
        tensors["weight_zero_point"] = padded_words(packed.zeros.T, bits).T
    assert_same_weight(read_linear(tensors, bits=bits, name="up_proj"), packed)


def test_tensors_packed_in_both_ways():
    packed = random_weight(3, 64, 64, group_size=64)
    tensors = write_linear(packed)
    tensors["weight_packed"] = padded_words(packed.codes, 3)
    with pytest.raises(FormatError, match="l.weight_zero_point has 6 words for 64 values of 3 b"):
        read_linear(tensors, bits=3, name="l")


def small(bits=4, n=16, k=64, **kwargs):
    return random_weight(bits, n, k, group_size=32, **kwargs)


def test_zero_points_that_are_not_packed():
    packed = small()
    tensors = write_linear(packed)
    tensors["weight_zero_point"] = torch.from_numpy((packed.zeros.astype(int) - 8).astype(np.int8))
    assert_same_weight(read_linear(tensors, bits=4, name="up_proj"), packed)
    tensors["weight_zero_point"][3, 1] = -9
    with pytest.raises(FormatError, match=r"l.weight_zero_point reaches from -9 .*-8 to 7 at 4"):
        read_linear(tensors, bits=4, name="l")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8])
def test_channel_parts_may_have_one_dimension(dtype):
    packed = random_weight(4, 16, 50, group_size=50)
    tensors = write_linear(packed)
    if dtype == torch.int8:
        signed = packed.zeros.astype(int) - 8
        tensors["weight_zero_point"] = torch.from_numpy(signed.astype(np.int8))
    for part in ("weight_scale", "weight_zero_point"):
        tensors[part] = tensors[part][:, 0]
    assert_same_weight(read_linear(tensors, bits=4, group_size=-1, name="up_proj"), packed)


def test_activation_order():
    packed = small()
    tensors = write_linear(packed)
    order = np.random.default_rng(0).permutation(np.arange(64) // 32).astype(np.int32)
    tensors["weight_g_idx"] = torch.from_numpy(order)
    back = read_linear(tensors, bits=4, group_size=32, name="up_proj")
    assert_same_weight(back, dataclasses.replace(packed, g_idx=order))
    for absent in (np.full(64, -1), np.arange(64) // 32):
        tensors["weight_g_idx"] = torch.from_numpy(absent.astype(np.int32))
        assert_same_weight(read_linear(tensors, bits=4, name="up_proj"), packed)
    for wrong in (np.where(order == 0, -1, order), order + 1):
        tensors["weight_g_idx"] = torch.from_numpy(wrong)
        with pytest.raises(FormatError, match=r"l.weight_g_idx reaches from .*expected 0 to 1,"):
            read_linear(tensors, bits=4, name="l")


def test_last_group_may_be_short_if_the_config_says_so():
    packed = random_weight(4, 8, 100, group_size=32)
    tensors = write_linear(random_weight(4, 8, 100, group_size=100))
    tensors["weight_scale"] = torch.from_numpy(packed.scales).half()
    del tensors["weight_zero_point"]
    back = read_linear(tensors, bits=4, group_size=32)
    assert (back.group_size, back.n_groups, back.in_features) == (32, 4, 100)
    assert read_linear(tensors, bits=4).group_size == 25  # nothing says otherwise
    tensors["weight_scale"] = tensors["weight_scale"][:, :3]
    with pytest.raises(FormatError, match=r"l.weight_scale has 3 groups, .*K = 100.*group_size"):
        read_linear(tensors, bits=4, name="l")


@pytest.mark.parametrize("wrong", [16, 48, 128, -1])
def test_group_size_of_the_config_is_compared(wrong):
    if wrong == 48:  # two groups as well, the last one short: cannot be told apart
        assert read_linear(write_linear(small()), bits=4, group_size=48).group_size == 48
        return
    expected = {16: 4, 128: 1, -1: 1}[wrong]
    with pytest.raises(FormatError, match=f"has 2 groups; expected {expected}, .* {wrong} and K"):
        read_linear(write_linear(small()), bits=4, group_size=wrong, name="l")


@pytest.mark.parametrize("wrong", [0, -2, 2.5, "32", True])
def test_group_size_that_is_none(wrong):
    with pytest.raises(FormatError, match="group_size .*expected a positive int"):
        read_linear(write_linear(small()), bits=4, group_size=wrong, name="l")


@pytest.mark.parametrize("bits", [0, 1, 9, 32, None, "4", 4.0])
def test_bits_out_of_range(bits):
    with pytest.raises(FormatError, match="l: bits is .*2 to 8"):
        read_linear(write_linear(small()), bits=bits, name="l")


@pytest.mark.parametrize("part", TENSORS)
def test_missing_tensor(part):
    tensors = write_linear(small())
    del tensors[part]
    with pytest.raises(FormatError, match=f"l: tensor l.{part} is missing"):
        read_linear(tensors, bits=4, name="l")


WRONG = {
    "weight_packed": [
        (lambda t: t.to(torch.int64), "is int64 of shape"),
        (lambda t: t[:, :3], "has 3 words for 64 values of 4 bits; expected 8"),
        (lambda t: t[:, :0], "has 0 words for 64"),
        (lambda t: t[:15], r"shape \(15, 8\); expected int32 of N = 16 rows"),
        (lambda t: t.flatten(), "expected int32 with 2 dimensions"),
    ],
    "weight_scale": [
        (lambda t: t.double(), "is float64 .*expected one of float16"),
        (lambda t: t[None], r"shape \(1, 16, 2\)"),
        (lambda t: t[:, :0], r"shape \(16, 0\)"),
        (lambda t: t[:0], r"shape \(0, 2\)"),
    ],
    "weight_shape": [
        (lambda t: t.float(), "is float32"),
        (lambda t: t[:1], r"shape \(1,\)"),
        (lambda t: t.flip(0), "N = 64, K = 16; expected N = 16"),
        (lambda t: t * torch.tensor([1, -1]), "K = -64; expected"),
    ],
    "weight_zero_point": [
        (lambda t: t.to(torch.int64), "is int64 .*expected int32"),
        (lambda t: t.to(torch.int8), r"shape \(2, 2\); expected int8 of shape \(16, 2\)"),
        (lambda t: t[:1], "has 1 words for 16 values of 4 bits; expected 2"),
        (lambda t: t[:, :1], "expected int32 of G = 2 columns"),
        (lambda t: t[:, 0], "expected int32 of G = 2 columns"),
    ],
    "weight_g_idx": [
        (lambda _: torch.zeros(64), "is float32"),
        (lambda _: torch.zeros(63, dtype=torch.int32), r"shape \(63,\); expected int32 of .*\(64,"),
    ],
}
CHANGES = [(part, *change) for part, changes in WRONG.items() for change in changes]


@pytest.mark.parametrize(("part", "change", "text"), CHANGES)
def test_impossible_tensors(part, change, text):
    tensors = write_linear(small())
    tensors[part] = change(tensors.get(part))
    with pytest.raises(FormatError, match=rf"^l\.{part} .*{text}"):
        read_linear(tensors, bits=4, name="l")


def test_width_stated_is_not_allocated_before_it_is_compared():
    tensors = write_linear(small())
    tensors["weight_shape"] = torch.tensor([16, 64 * 2**50])
    with pytest.raises(FormatError, match=r"l.weight_packed has 8 words for 72057594037927936 val"):
        read_linear(tensors, bits=4, name="l")


DTYPES = [
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]
SIZES = st.sampled_from([0, 1, 2, 3, 8, 13, 16])


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_anything_else_is_a_format_error(data):
    """Random parts in place of some of a good linear's: read whole, or refused by name."""
    bits = data.draw(st.integers(0, 9))
    tensors = write_linear(small())
    parts = (*TENSORS, *OPTIONAL)
    for part in data.draw(st.lists(st.sampled_from(parts), max_size=5, unique=True)):
        shape = data.draw(st.lists(SIZES, max_size=3))
        values = torch.full(shape, data.draw(st.sampled_from([-(2**31), -1, 0, 1, 16, 64])))
        tensors[part] = values.to(data.draw(st.sampled_from(DTYPES)))
        if data.draw(st.booleans()):
            del tensors[part]
    group_size = data.draw(st.sampled_from([None, -1, 0, 1, 8, 32, 64, 1000]))
    try:
        packed = read_linear(tensors, bits=bits, group_size=group_size, name="l")
    except FormatError as error:
        assert str(error).startswith(("l.weight_", "l: "))
    else:
        assert packed.dequantize().shape == tuple(tensors["weight_shape"].tolist())


def test_scales_that_are_not_finite_are_read_and_not_written():
    tensors = write_linear(small())
    tensors["weight_scale"][2, 1] = float("nan")
    packed = read_linear(tensors, bits=4, name="l")
    assert np.isnan(packed.scales[2, 1])
    with pytest.raises(NonFiniteError, match=r"l: scales hold NaN or inf \(1 of 32\)"):
        write_linear(packed)


def test_scales_of_another_dtype_are_not_written():
    packed = dataclasses.replace(small(), scales=np.full((16, 2), 1 / 3, np.float32))
    with pytest.raises(FormatError, match="up_proj: 32 of 32 scales are not numbers of float16"):
        write_linear(packed)


def test_short_last_group_is_not_written():
    with pytest.raises(AlignmentError, match=r"up_proj: in_features 100 .* 32 \(remainder 4\)"):
        write_linear(random_weight(4, 8, 100, group_size=32))


def test_symmetric_weight_with_zero_points_is_not_written():
    packed = dataclasses.replace(small(), zero_point=False)
    with pytest.raises(FormatError, match="up_proj is symmetric .*expected 8 throughout"):
        write_linear(packed)


def test_codes_beyond_their_width_are_not_written():
    packed = small(3)
    packed.codes[0, 0] = 8
    with pytest.raises(ValueError, match="value 8 does not fit in 3 bits"):
        write_linear(packed)


def test_quantized_weight_survives():
    weight = np.random.default_rng(0).standard_normal((24, 96)).astype(np.float32)
    packed = quantize_weight(weight, 4, 32, scale_dtype="bfloat16", name="l")
    back = read_linear(write_linear(packed), bits=4, group_size=32, name="l")
    np.testing.assert_array_equal(back.dequantize(), packed.dequantize())
