"""ChatGLM's own layout against tensors that its quantization code wrote."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from awqbench.errors import FormatError, NonFiniteError
from awqbench.formats.layouts.chatglm import TENSORS, check_in_features, read_linear, write_linear
from awqbench.packed import PackedWeight

TESTS = Path(__file__).parents[1]
OWN_CASES = sorted((TESTS / "data" / "chatglm").glob("*.safetensors"))
# A wider collection may lie beside the repository; these tests stand without it.
COLLECTION = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no wider collection"), id="wider")
WIDER_CASES = sorted((COLLECTION / "linear" / "chatglm").glob("*.safetensors")) or [NONE]
MODELS = sorted((COLLECTION / "model").glob("chatglm*")) or [NONE]


@pytest.fixture(params=[*OWN_CASES, *WIDER_CASES], ids=lambda path: path.stem)
def case(request):
    """Return bits, the tensors as they are called on disk, and what they decode to."""
    tensors = load_file(request.param)
    linear = {"weight": tensors["qweight"], "weight_scale": tensors["weight_scale"]}
    return int(request.param.stem[1]), linear, tensors["dequant_nk_f32"]


def test_decodes_bit_for_bit(case):
    bits, linear, expected = case
    packed = read_linear(linear, bits=bits, group_size=-1, name="l")
    decoded = torch.from_numpy(packed.dequantize())
    assert torch.equal(decoded.view(torch.int32), expected.view(torch.int32))
    assert (packed.group_size, packed.n_groups) == (expected.shape[1], 1)
    assert not packed.zero_point and (packed.zeros == 2 ** (bits - 1)).all()
    assert packed.scale_dtype == str(linear["weight_scale"].dtype).removeprefix("torch.")


def test_written_tensors_are_the_tool_s(case):
    bits, linear, _ = case
    written = write_linear(read_linear(linear, bits=bits))
    assert set(written) == set(TENSORS)
    for part, tensor in written.items():
        assert tensor.dtype == linear[part].dtype and torch.equal(tensor, linear[part])


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_linears_of_a_model_decode_bit_for_bit(folder):
    tensors = load_file(folder / "model.safetensors")
    bits = 8 if "int8" in folder.name else 4
    for name, expected in load_file(folder / "decompressed_layer0.safetensors").items():
        linear = {"weight": tensors[name], "weight_scale": tensors[f"{name}_scale"]}
        packed = read_linear(linear, bits=bits, name=name)
        assert torch.equal(torch.from_numpy(packed.dequantize()), expected)
        assert torch.equal(write_linear(packed)["weight"], tensors[name])


def test_even_column_is_in_the_high_nibble():
    stored = torch.tensor([[0x7F, -0x80]], dtype=torch.int8)  # 0x7f, 0x80
    linear = {"weight": stored, "weight_scale": torch.ones(1)}
    assert read_linear(linear, bits=4).dequantize().tolist() == [[7, -1, -8, 0]]
    assert read_linear(linear, bits=8).dequantize().tolist() == [[127, -128]]


def small(bits=4, n=6, k=10, *, scale_dtype="float16", seed=0):
    rng = np.random.default_rng(seed)
    return PackedWeight(
        codes=rng.integers(0, 2**bits, (n, k), dtype=np.uint8),
        scales=rng.integers(0, 128, (n, 1)).astype(np.float32) / 1024,
        zeros=np.full((n, 1), 2 ** (bits - 1), np.uint8),
        bits=bits,
        group_size=k,
        zero_point=False,
        scale_dtype=scale_dtype,
        name="dense",
    )


@given(
    bits=st.sampled_from([4, 8]),
    n=st.integers(1, 20),
    half_k=st.integers(1, 20),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_own_weights_survive_the_disk(bits, n, half_k, **kwargs):
    packed = small(bits, n, 2 * half_k, **kwargs)
    tensors = write_linear(packed)
    assert tensors["weight"].shape == (n, 2 * half_k * bits // 8)
    assert str(tensors["weight_scale"].dtype) == f"torch.{kwargs['scale_dtype']}"
    for group_size in (None, -1, 2 * half_k):
        back = read_linear(tensors, bits=bits, group_size=group_size, name="dense")
        for field in dataclasses.fields(PackedWeight):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(packed, field.name))
        assert back.codes.dtype == back.zeros.dtype == np.uint8


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_other_widths_are_not_written(bits):
    with pytest.raises(FormatError, match=f"dense: bits is {bits}; ChatGLM's layout holds 4 or 8"):
        write_linear(small(bits))


REFUSED = [
    ({"g_idx": np.zeros(10, np.int32)}, r"dense is in activation order \(g_idx\).*group_size=-1"),
    (
        {"group_size": 5, "scales": np.ones((6, 2)), "zeros": np.full((6, 2), 8)},
        "dense has 2 groups of 5 in a row; .*group_size=-1",
    ),
    ({"zeros": np.full((6, 1), 7)}, "dense is asymmetric, .*from 7 to 7; .*zero_point=False"),
    ({"zero_point": True}, "dense is asymmetric"),
    ({"codes": np.zeros((6, 9), np.uint8), "group_size": 9}, "is 9, which is odd; .*Pad by 1, or"),
    ({"scales": np.full((6, 1), 1 / 3)}, "dense: 6 of 6 scales are not numbers of float16"),
]


@pytest.mark.parametrize(("change", "text"), REFUSED)
def test_what_the_layout_cannot_hold(change, text):
    with pytest.raises(FormatError, match=text):
        write_linear(dataclasses.replace(small(), **change))


def test_odd_rows_fit_at_8_bits():
    assert write_linear(small(8, 3, 9))["weight"].shape == (3, 9)
    check_in_features(9, 8, name="dense")


def test_codes_beyond_four_bits_are_not_written():
    packed = small()
    packed.codes[0, 0] = 16
    with pytest.raises(ValueError, match="value 16 does not fit in 4 bits"):
        write_linear(packed)


def test_scales_that_are_not_finite_are_read_and_not_written():
    tensors = write_linear(small())
    tensors["weight_scale"][:2] = torch.tensor([float("nan"), float("inf")])
    packed = read_linear(tensors, bits=4, name="l")
    assert np.isnan(packed.scales[0, 0]) and np.isinf(packed.scales[1, 0])
    with pytest.raises(NonFiniteError, match=r"l: scales hold NaN or inf \(2 of 6\)"):
        write_linear(packed)


@pytest.mark.parametrize("part", TENSORS)
def test_missing_tensor(part):
    tensors = write_linear(small())
    del tensors[part]
    with pytest.raises(FormatError, match=f"l: tensor l.{part} is missing; found weight"):
        read_linear(tensors, bits=4, name="l")


@pytest.mark.parametrize("bits", [0, 2, 3, 16, None, "4", 4.0])
def test_bits_that_chatglm_has_not(bits):
    with pytest.raises(FormatError, match="l: bits is .*holds 4 or 8"):
        read_linear(write_linear(small()), bits=bits, name="l")


@pytest.mark.parametrize("wrong", [0, 5, 20, "x"])
def test_group_size_of_the_config_is_compared(wrong):
    with pytest.raises(FormatError, match=f"group_size {wrong!r}; expected -1 or K = 10"):
        read_linear(write_linear(small()), bits=4, group_size=wrong, name="l")


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("weight", lambda t: t.to(torch.uint8), r"uint8 of shape \(6, 5\); .*int8 .*\(N, K / 2\)"),
        ("weight", lambda t: t.half(), "is float16"),
        ("weight", lambda t: t[0], r"shape \(5,\)"),
        ("weight", lambda t: t[:, :0], r"shape \(6, 0\)"),
        ("weight_scale", lambda t: t[:5], r"shape \(5,\); expected .*shape \(6,\)"),
        ("weight_scale", lambda t: t[:, None], r"shape \(6, 1\); expected"),
        ("weight_scale", lambda t: t.double(), "is float64"),
        ("weight_scale", lambda t: t.to(torch.int8), "is int8"),
    ],
)
def test_impossible_tensors(part, change, text):
    tensors = write_linear(small())
    tensors[part] = change(tensors[part])
    with pytest.raises(FormatError, match=rf"^l\.{part} .*{text}"):
        read_linear(tensors, bits=4, name="l")


DTYPES = [
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


@given(
    bits=st.integers(0, 9),
    shapes=st.tuples(*[st.lists(st.integers(0, 4), max_size=3)] * 2),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
    value=st.sampled_from([-128, -1, 0, 1, 127]),
    group_size=st.sampled_from([None, -1, 0, 2, 4]),
)
@settings(max_examples=400, deadline=None)
def test_anything_else_is_a_format_error(bits, shapes, dtypes, value, group_size):
    tensors = {
        part: torch.full(shape, value).to(dtype)
        for part, shape, dtype in zip(TENSORS, shapes, dtypes, strict=True)
    }
    try:
        packed = read_linear(tensors, bits=bits, group_size=group_size, name="l")
    except FormatError as error:
        assert str(error).startswith(("l.weight", "l: "))
    else:
        assert packed.dequantize().shape == (shapes[0][0], shapes[0][1] * 8 // bits)
