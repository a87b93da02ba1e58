"""The GPTQ layouts against tensors that GPTQModel and AutoAWQ wrote."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from awqbench.errors import AlignmentError, FormatError, ParameterError
from awqbench.formats.layouts.gptq import BITS, quantization_config, read_linear, write_linear
from awqbench.formats.layouts.packing import unpack_stream
from awqbench.packed import PackedWeight, quantize_weight

TESTS = Path(__file__).parents[1]
OWN_CASES = sorted((TESTS / "data" / "gptq").glob("w*.safetensors"))
OWN_EXLLAMA_CASES = sorted((TESTS / "data" / "gptq").glob("exllama_*.safetensors"))
# A wider collection may lie beside the repository; these tests stand without it.
COLLECTION = TESTS.parents[1] / "shared" / "conformance"


def wider(pattern):
    found = sorted(COLLECTION.glob(pattern))
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="no wider collection"))]


def case_name(path):
    return path.stem if path else "wider"


@pytest.fixture(params=[*OWN_CASES, *wider("linear/gptq/*.safetensors")], ids=case_name)
def case(request):
    """Return the bits, the group size and the tensors of one linear."""
    bits, group_size = re.match(r"w(\d)_k\d+_n\d+_g(-?\d+)", request.param.stem).groups()
    return int(bits), int(group_size), load_file(request.param)


@pytest.fixture(params=[1, 2])
def version(request):
    """Return the layout's version."""
    return request.param


def linear_of(tensors, version):
    parts = {part: tensors[part] for part in ("qweight", "scales", "g_idx")}
    return parts | {"qzeros": tensors[f"qzeros_v{version}"]}


def test_decodes_bit_for_bit(case, version):
    bits, group_size, tensors = case
    packed = read_linear(
        linear_of(tensors, version), bits=bits, group_size=group_size, name="l", version=version
    )
    expected = tensors["dequant_kn"]
    decoded = torch.from_numpy(packed.dequantize().T.copy()).to(tensors["scales"].dtype)
    assert decoded.dtype == expected.dtype and torch.equal(decoded, expected)
    np.testing.assert_array_equal(packed.zeros, tensors["zeros_in"].numpy())
    assert packed.group_size == (packed.in_features if group_size == -1 else group_size)


def test_written_tensors_are_the_tool_s(case, version):
    bits, group_size, tensors = case
    expected = linear_of(tensors, version)
    packed = read_linear(expected, bits=bits, group_size=group_size, name="l", version=version)
    if version == 1 and (tensors["zeros_in"] == 0).any():
        with pytest.raises(FormatError, match=r"^l row \d+, group \d+ has zero point 0 .*gptq-v2"):
            write_linear(packed, version=1)
        return
    written = write_linear(packed, version=version)
    assert set(written) == set(expected)
    for part, tensor in written.items():
        assert tensor.dtype == expected[part].dtype and torch.equal(tensor, expected[part]), part


def test_group_order_is_kept_only_where_it_is_one(case):
    bits, group_size, tensors = case
    for given_size in (group_size, None):
        packed = read_linear(
            linear_of(tensors, 2), bits=bits, group_size=given_size, name="l", version=2
        )
        in_order = torch.arange(packed.in_features) // packed.group_size
        if torch.equal(tensors["g_idx"].long(), in_order):
            assert packed.g_idx is None
        else:
            np.testing.assert_array_equal(packed.g_idx, tensors["g_idx"].numpy())
        assert packed.group_size == (packed.in_features if group_size == -1 else group_size)


def test_own_cases_cover_the_layout():
    names = " ".join(path.stem for path in OWN_CASES)
    for what in ("w2", "w3", "w4", "w8", "act", "k224_n64_g64"):
        assert what in names
    borrowing = [path for path in OWN_CASES if (load_file(path)["zeros_in"] == 0).any()]
    assert len(borrowing) == 2


def test_zeros_of_0_borrow_in_version_1():
    # What a reader that adds 1 field by field gets: the count that such readers are wrong by.
    for stem, bits, wrong in (("w2_k128_n64_g32_asym", 2, 63), ("w4_k256_n64_g32_asym_bias", 4, 2)):
        tensors = load_file(TESTS / "data" / "gptq" / f"{stem}.safetensors")
        fields = unpack_stream(tensors["qzeros_v1"].numpy(), bits, 64)
        by_field = (fields.astype(int) + 1) % 2**bits
        assert (by_field.T != tensors["zeros_in"].numpy()).sum() == wrong
        packed = read_linear(linear_of(tensors, 1), bits=bits, group_size=32, version=1)
        np.testing.assert_array_equal(packed.zeros, tensors["zeros_in"].numpy())


@pytest.mark.parametrize(
    "path", [*OWN_EXLLAMA_CASES, *wider("linear/awq_gemm/*.safetensors")], ids=case_name
)
def test_exllama_tensors_of_awq_are_version_1(path):
    tensors = load_file(path)
    zeros = tensors["zeros_in"].numpy()
    linear = {"qweight": tensors["exllama_qweight"], "scales": tensors["scales"]}
    # AutoAWQ at run time sums shifted fields, which borrows as GPTQModel does ...
    packed = read_linear(
        linear | {"qzeros": tensors["exllama_rt_qzeros"]}, bits=4, name="l", version=1
    )
    decoded = torch.from_numpy(packed.dequantize().T.copy()).to(tensors["dequant_kn"].dtype)
    assert torch.equal(decoded, tensors["dequant_kn"])
    np.testing.assert_array_equal(packed.zeros, zeros)
    # ... and its converter masks, so that words without a zero point of 0 agree.
    masked = read_linear(linear | {"qzeros": tensors["exllama_qzeros"]}, bits=4, version=1)
    words = zeros.reshape(-1, 8, zeros.shape[1])  # (N / 8, 8, G)
    agree = np.broadcast_to(~(words == 0).any(axis=1, keepdims=True), words.shape)
    agree = agree.reshape(zeros.shape)
    assert agree.any()
    np.testing.assert_array_equal(masked.zeros[agree], zeros[agree])


def small(bits=4, n=32, k=64, group_size=32, **kwargs):
    weight = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    return quantize_weight(
        weight, bits, group_size, **{"scale_dtype": "float16", "name": "up_proj"} | kwargs
    )


@st.composite
def packed_weights(draw):
    """Draw a weight that the layout can hold; zero points of 0 among others."""
    bits = draw(st.sampled_from(BITS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, k = 32 * draw(st.integers(1, 3)), 32 * draw(st.integers(1, 4))
    group_size = draw(st.integers(1, k))
    g = -(-k // group_size)
    order = draw(st.sampled_from(["in order", "permuted", "any"]))
    in_order = np.arange(k) // group_size
    g_idx = {
        "in order": None,
        "permuted": rng.permutation(in_order).astype(np.int32),
        "any": rng.integers(0, g, k).astype(np.int32),
    }[order]
    if g_idx is not None and np.array_equal(g_idx, in_order):
        g_idx = None
    return PackedWeight(
        codes=rng.integers(0, 2**bits, (n, k), dtype=np.uint8),
        scales=rng.normal(size=(n, g)).astype(np.float16).astype(np.float32),
        zeros=rng.integers(draw(st.integers(0, 1)), 2**bits, (n, g), dtype=np.uint8),
        bits=bits,
        group_size=group_size,
        g_idx=g_idx,
        name="up_proj",
    )


@settings(deadline=None, max_examples=150)
@given(packed=packed_weights(), version=st.sampled_from([1, 2]))
def test_weights_survive_the_disk(packed, version):
    if version == 1 and (packed.zeros == 0).any():
        with pytest.raises(FormatError, match="gptq-v2"):
            write_linear(packed, version=1)
        return
    back = read_linear(
        write_linear(packed, version=version),
        bits=packed.bits,
        group_size=packed.group_size,
        name="up_proj",
        version=version,
    )
    for field in ("codes", "scales", "zeros", "g_idx"):
        np.testing.assert_array_equal(getattr(back, field), getattr(packed, field))
    assert (back.bits, back.group_size, back.name) == (packed.bits, packed.group_size, "up_proj")
    assert back.zero_point == (packed.zeros != 2 ** (packed.bits - 1)).any()
    assert back.codes.flags.c_contiguous and back.scale_dtype == "float16"


DTYPES = (torch.int32, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 32]), max_size=3)


@st.composite
def any_tensors(draw):
    """Draw tensors as a stranger's file may hold them, some nearly right."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    bits = draw(st.sampled_from([*BITS, *BITS, *BITS, 1, 5, 9]))
    rows, groups, n = (draw(st.sampled_from([1, 2, 3, 6, 8])) for _ in range(3))
    fitting = {
        "qweight": (torch.int32, (rows, n)),
        "qzeros": (torch.int32, (groups, -(-n * bits // 32))),
        "scales": (torch.float16, (groups, n)),
        "g_idx": (torch.int32, (rows * 32 // bits,)),
    }
    tensors = {}
    for part, (dtype, shape) in fitting.items():
        change = draw(st.sampled_from([*[""] * 9, "missing", "dtype", "shape"]))
        if change == "missing":
            continue
        dtype = draw(st.sampled_from(DTYPES)) if change == "dtype" else dtype
        shape = draw(SHAPES) if change == "shape" else shape
        low, high = (-1, groups + 1) if draw(st.booleans()) else (0, groups)
        if part != "g_idx":
            low, high = -(2**31), 2**31 - 1
        values = torch.randint(low, high, tuple(shape), generator=generator)
        tensors[part] = values.to(dtype)
    return bits, tensors


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=any_tensors(),
    group_size=st.none() | st.integers(-2, 40) | st.sampled_from([64, 128]),
    version=st.sampled_from([1, 2]),
)
def test_any_tensors_are_a_weight_or_a_format_error(drawn, group_size, version):
    bits, tensors = drawn
    try:
        packed = read_linear(tensors, bits=bits, group_size=group_size, name="l", version=version)
    except FormatError as error:
        assert str(error).startswith("l") and len(str(error)) < 400
        return
    n, k = packed.codes.shape
    assert packed.scales.shape == packed.zeros.shape == (n, -(-k // packed.group_size))
    assert packed.codes.max() < 2**bits and packed.zeros.max() < 2**bits
    assert packed.group_index().max() < packed.n_groups
    with np.errstate(all="ignore"):  # scales may be infinite
        assert packed.dequantize().shape == (n, k)


def test_config_is_as_gptqmodel_writes_it():
    config = quantization_config(
        bits=4,
        group_size=64,
        zero_point=False,
        desc_act=False,
        version=1,
        modules_to_not_convert=None,
    )
    assert config.pop("meta")["quantizer"] == ["awqbench"]
    assert config == {
        "bits": 4,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "format": "gptq",
        "group_size": 64,
        "lm_head": False,
        "method": "gptq",
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": True,
    }


@pytest.mark.parametrize("path", wider("model/gptqmodel_gptq_*/config.json"))
def test_config_has_the_keys_of_gptqmodel_s(path):
    theirs = json.loads(path.read_text())["quantization_config"]
    config = quantization_config(
        bits=theirs["bits"],
        group_size=theirs["group_size"],
        zero_point=not theirs["sym"],
        desc_act=theirs["desc_act"],
        version=2 if theirs["checkpoint_format"] == "gptq_v2" else 1,
        modules_to_not_convert=["model.layers.1.self_attn.o_proj"] if "dynamic" in theirs else [],
    )
    assert list(config) == list(theirs)
    for key in set(config) - {"meta", "dynamic"}:
        assert config[key] == theirs[key]


def test_excluded_modules_are_negative_rules():
    excluded = ["model.layers.1.mlp.gate", "lm_head"]
    config = quantization_config(
        bits=4,
        group_size=128,
        zero_point=True,
        desc_act=True,
        version=2,
        modules_to_not_convert=excluded,
    )
    assert (config["checkpoint_format"], config["format"]) == ("gptq_v2", "gptq_v2")
    assert config["desc_act"] is True and config["sym"] is False
    assert json.loads(json.dumps(config)) == config
    rules = list(config["dynamic"])
    assert len(rules) == 2 and all(rule.startswith("-:") for rule in rules)

    def is_excluded(module):
        return any(re.match(rule.removeprefix("-:"), module) for rule in rules)

    for module in (*excluded, "model.layers.1.mlp.gate.inner"):
        assert is_excluded(module)
    for module in ("model.layers.1.mlp.gate_proj", "model.layers.10.mlp.gate", "modelXlayers"):
        assert not is_excluded(module)


@pytest.mark.parametrize("bits", [1, 5, 6, 7, 9, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(FormatError, match=f"^l has {bits} bits; .*2, 3, 4 or 8"):
        read_linear(write_linear(small()), bits=bits, name="l")
    with pytest.raises(FormatError, match=f"^up_proj has {bits} bits"):
        write_linear(dataclasses.replace(small(), bits=bits))


def test_other_versions_are_refused():
    for call in (
        lambda: read_linear(write_linear(small()), bits=4, version=3),
        lambda: write_linear(small(), version=0),
    ):
        with pytest.raises(ParameterError, match="version is"):
            call()


@pytest.mark.parametrize(
    ("n", "k", "texts"),
    [
        (40, 64, ["out_features is 40", "remainder 8", "pad by 24 to 64"]),
        (32, 80, ["in_features is 80", "remainder 16", "pad by 16 to 96"]),
    ],
)
def test_sizes_that_gptqmodel_cannot_load_are_not_written(n, k, texts):
    with pytest.raises(AlignmentError) as caught:
        write_linear(small(n=n, k=k, group_size=16))
    for text in ("up_proj", *texts):
        assert text in str(caught.value)


@pytest.mark.parametrize("value", [1 / 3, 1e-9, 1e9, np.nan, np.inf])
def test_scales_that_float16_cannot_hold_are_not_written(value):
    packed = small()
    packed.scales[3, 1] = value
    with pytest.raises(FormatError, match=r"up_proj row 3, group 1 has scale .* \(1 of 64\)"):
        write_linear(packed)


@pytest.mark.parametrize("version", [1, 2])
def test_numbers_beyond_the_width_are_not_written(version):
    packed = small(zero_point=False)
    packed.zeros[2, 1] = 16  # less one it would fit
    with pytest.raises(FormatError, match="up_proj row 2, group 1 has zero point 16"):
        write_linear(packed, version=version)
    packed = small(zero_point=False)
    packed.codes[0, 0] = 16
    with pytest.raises(ValueError, match="value 16"):
        write_linear(packed, version=version)


def test_groups_that_do_not_exist_are_not_written():
    g_idx = np.zeros(64, np.int32)
    g_idx[5] = 2
    with pytest.raises(FormatError, match=r"up_proj.g_idx\[5\] is 2; expected 0 to 1"):
        write_linear(dataclasses.replace(small(), g_idx=g_idx))
    with pytest.raises(FormatError, match="up_proj.scales has 2 groups; .* need 4"):
        write_linear(dataclasses.replace(small(), group_size=16))


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_missing_tensor(part):
    tensors = write_linear(small())
    del tensors[part]
    with pytest.raises(FormatError, match=f"^l: tensor l.{part} is missing"):
        read_linear(tensors, bits=4, name="l", version=2)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float64, torch.bool])
def test_other_dtypes(part, dtype):
    tensors = write_linear(small())
    tensors[part] = tensors[part].to(dtype)
    with pytest.raises(FormatError, match=rf"^l.{part} is {str(dtype)[6:]} of shape .*expected"):
        read_linear(tensors, bits=4, name="l", version=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_keep_their_own_dtype(dtype):
    tensors = write_linear(small(scale_dtype="bfloat16"))
    tensors["scales"] = tensors["scales"].to(dtype)
    packed = read_linear(tensors, bits=4, version=2)
    assert packed.scale_dtype == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(packed.scales.T, tensors["scales"].float().numpy())


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("qweight", lambda t: t[:, :8], r"\(8, 8\); l.scales \(2, 32\) need 32 columns"),
        ("qweight", lambda t: t[:7], "g_idx has 64 entries; the 7 rows of l.qweight hold 56"),
        ("qweight", lambda t: t[0], "expected int32 with 2 dimensions"),
        ("qweight", lambda t: t[:0], "none empty"),
        ("qzeros", lambda t: t[:1], r"shape \(1, 4\); .* at 4 bits need \(2, 4\)"),
        ("qzeros", lambda t: torch.cat([t, t], 1), r"\(2, 4\); the shape found is that of 8 bits"),
        ("scales", lambda t: t[:1], "qzeros has shape"),
        ("scales", lambda t: t.flatten(), "expected float16 or bfloat16 or float32 with 2"),
        ("g_idx", lambda t: t[:-8], "g_idx has 56 entries; the 8 rows .* hold 64 .* at 4 bits"),
        ("g_idx", lambda t: t[None], "g_idx is int32 of shape"),
        ("g_idx", lambda t: t + 1, r"g_idx\[32\] is 2; expected 0 to 1, .*32 entries of 64"),
        ("g_idx", lambda t: t - 1, r"g_idx\[0\] is -1; expected 0 to 1"),
    ],
)
def test_impossible_tensors(part, change, text):
    tensors = write_linear(small())
    tensors[part] = change(tensors[part])
    with pytest.raises(FormatError, match=rf"^l[:.].*{text}"):
        read_linear(tensors, bits=4, group_size=32, name="l", version=2)


def test_index_says_how_many_codes_of_the_last_word_count():
    tensors = write_linear(small())
    tensors["g_idx"] = tensors["g_idx"][:-1]
    packed = read_linear(tensors, bits=4, group_size=32, version=2)
    assert packed.in_features == 63 and packed.codes.flags.c_contiguous
    np.testing.assert_array_equal(packed.codes, small().codes[:, :63])


@pytest.mark.parametrize("with_index", [True, False])
def test_three_bits_fill_three_words(with_index):
    tensors = write_linear(small(bits=3))
    if not with_index:
        del tensors["g_idx"]
    tensors["qweight"] = tensors["qweight"][:5]
    with pytest.raises(FormatError, match="^l.qweight has 5 rows; at 3 bits"):
        read_linear(tensors, bits=3, name="l", version=2)
    tensors = write_linear(small(bits=3))
    tensors["g_idx"] = tensors["g_idx"][:63]
    with pytest.raises(FormatError, match="^l.g_idx has 63 entries"):
        read_linear(tensors, bits=3, name="l", version=2)


def test_group_size_is_compared():
    tensors = write_linear(small())
    for fine in (32, 40, 63, None):
        assert read_linear(tensors, bits=4, group_size=fine, version=2).n_groups == 2
    for wrong, need in ((16, 4), (128, 1), (-1, 1)):
        with pytest.raises(FormatError, match=f"l.scales has 2 groups; .* need {need}"):
            read_linear(tensors, bits=4, group_size=wrong, name="l", version=2)
    for wrong in (0, -2, 32.0, "32"):
        with pytest.raises(FormatError, match=f"l: group_size is {wrong!r}; expected"):
            read_linear(tensors, bits=4, group_size=wrong, name="l", version=2)


@pytest.mark.parametrize(
    ("k", "group_size", "is_told"),
    [(128, 128, True), (128, 32, True), (480, 96, True), (192, 96, False), (224, 64, False)],
)
def test_group_size_without_index(k, group_size, is_told):
    n_groups = -(-k // group_size)
    tensors = {
        "qweight": torch.zeros(k // 8, 32, dtype=torch.int32),
        "qzeros": torch.zeros(n_groups, 4, dtype=torch.int32),
        "scales": torch.ones(n_groups, 32, dtype=torch.float16),
    }
    told = read_linear(tensors, bits=4, group_size=group_size, version=2)
    assert (told.in_features, told.group_size, told.g_idx) == (k, group_size, None)
    if is_told:
        assert read_linear(tensors, bits=4, version=2).group_size == group_size
        return
    with pytest.raises(FormatError, match=f"^l: no one group size follows from {k} input channels"):
        read_linear(tensors, bits=4, name="l", version=2)


def test_symmetric_words_are_as_published():
    for bits, word in ((4, 0x77777777), (8, 0x7F7F7F7F)):
        tensors = write_linear(small(bits=bits, zero_point=False), version=1)
        assert (tensors["qzeros"] == word).all()
        packed = read_linear(tensors, bits=bits)
        assert packed.zero_point is False and (packed.zeros == 2 ** (bits - 1)).all()


def test_nothing_is_shared_with_the_tensors():
    tensors = write_linear(small(k=32))
    tensors["scales"] = tensors["scales"].float()
    packed = read_linear(tensors, bits=4, version=2)
    before = packed.dequantize()
    for tensor in tensors.values():
        tensor.zero_()
    np.testing.assert_array_equal(packed.dequantize(), before)
