"""AutoAWQ's GEMV, GEMV-fast and Marlin layouts against tensors that its packers wrote."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts import awq, awq_gemv, awq_gemv_fast, awq_marlin
from awqbench.packed import PackedWeight, quantize_weight

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "tests" / "data" / "awq_variants"
COLLECTION = ROOT.parent / "shared" / "conformance" / "linear"
LAYOUTS = {
    "awq_gemv": awq_gemv,
    "awq_gemv_fast": awq_gemv_fast,
    "awq_marlin": awq_marlin,
    "awq_gemm": awq,
    "gptqmodel_awq": awq,
}


def all_cases():
    """Return (module, bits, path): the repository's own, then a wider collection's if there."""
    found = [
        (LAYOUTS[f"awq_{layout}"], 4, path)
        for layout in ("gemv", "gemv_fast", "marlin")
        for path in OWN.glob(f"{layout}_k*.safetensors")
    ]
    assert len(found) == 3
    for folder, module in LAYOUTS.items():
        for path in sorted((COLLECTION / folder).glob("*.safetensors")):
            found.append((module, int(path.stem[1]) if path.stem[0] == "w" else 4, path))
    return [pytest.param(*case, id=f"{case[2].parent.name}-{case[2].stem}") for case in found]


def own(layout):
    (path,) = OWN.glob(f"{layout}_k*.safetensors")
    tensors = load_file(path)
    return {p: tensors[p] for p in ("qweight", "qzeros", "scales") if p in tensors}


def random_packed(n=16, k=128, group_size=32, seed=0, **changes):
    rng = np.random.default_rng(seed)
    n_groups = k // group_size
    return PackedWeight(
        codes=rng.integers(0, 16, (n, k), dtype=np.uint8),
        scales=rng.uniform(0.001, 2, (n, n_groups)).astype(np.float16).astype(np.float32),
        zeros=rng.integers(0, 16, (n, n_groups), dtype=np.uint8),
        **{"bits": 4, "group_size": group_size, "name": "up_proj"} | changes,
    )


@pytest.mark.parametrize(("module", "bits", "path"), all_cases())
def test_decodes_as_the_tool(module, bits, path):
    tensors = load_file(path)
    packed = module.read_linear(tensors, bits=bits, name="l")
    decoded = torch.from_numpy(packed.dequantize()).to(tensors["scales"].dtype)
    if module is awq_marlin:
        assert torch.equal(decoded, tensors["weight_fake"])
        assert not packed.zero_point and (packed.zeros == 8).all()
    else:
        assert torch.equal(decoded.T, tensors["dequant_kn"].to(decoded.dtype))
        np.testing.assert_array_equal(packed.zeros, tensors["zeros_in"].numpy())
    np.testing.assert_array_equal(packed.scales, tensors["scales_in"].float().numpy())
    assert packed.scale_dtype == str(tensors["scales"].dtype).removeprefix("torch.")
    found = packed.in_features // packed.n_groups
    again = module.read_linear(tensors, bits=bits, group_size=found, name="l")
    assert again.group_size == packed.group_size == found
    np.testing.assert_array_equal(again.codes, packed.codes)


@pytest.mark.parametrize(("module", "bits", "path"), all_cases())
def test_writes_the_tool_s_tensors(module, bits, path):
    if bits != 4 or not hasattr(module, "write_linear"):
        pytest.skip("a layout that is only read")
    tensors = load_file(path)
    written = module.write_linear(module.read_linear(tensors, name="l"))
    assert set(written) == {"qweight", "qzeros", "scales"}
    for part, tensor in written.items():
        assert tensor.dtype == tensors[part].dtype and torch.equal(tensor, tensors[part])


def test_llm_awq_s_name_of_the_zeros():
    tensors = own("gemv_fast")
    expected = awq_gemv_fast.read_linear(tensors)
    renamed = {"scaled_zeros": tensors["qzeros"]} | {
        part: tensors[part] for part in ("qweight", "scales")
    }
    np.testing.assert_array_equal(awq_gemv_fast.read_linear(renamed).zeros, expected.zeros)
    with pytest.raises(FormatError, match="tensor l.qzeros is missing; found qweight, scales"):
        awq_gemv_fast.read_linear(
            {p: tensors[p] for p in ("qweight", "scales")}, group_size=64, name="l"
        )


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 6).map(lambda i: 8 * i),
    group_size=st.sampled_from([32, 64, 128, 160, 256]),
    n_groups=st.integers(1, 19),
    seed=st.integers(0, 2**32),
    zero_point=st.booleans(),
)
def test_gemv_survives_the_disk(n, group_size, n_groups, seed, zero_point):
    packed = random_packed(n, group_size * n_groups, group_size, seed, zero_point=zero_point)
    tensors = awq_gemv.write_linear(packed)
    assert tensors["scales"].shape[1] == 8 * tensors["qzeros"].shape[1] >= n_groups
    back = awq_gemv.read_linear(tensors, group_size=group_size, name="up_proj")
    for field in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(back, field), getattr(packed, field))
    assert (back.bits, back.group_size, back.scale_dtype) == (4, group_size, "float16")


@pytest.mark.parametrize(
    ("in_features", "group_size", "words"),
    [(96, 32, 4), (1024, 32, 4), (1056, 32, 8), (64, 64, 2), (1088, 64, 4), (128, 128, 1),
     (1024, 128, 1), (1152, 128, 2), (11008, 128, 11), (256, 256, 1)],
)  # fmt: skip
def test_padded_width(in_features, group_size, words):
    assert awq_gemv.padded_groups(in_features, group_size) == 8 * words


def marlin_of(codes, scales):
    """Pack (K, N) codes and (G, N) scales as the Marlin paper's repack does, by loops."""
    k, n = codes.shape
    tiles = codes.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    order = []
    for thread in range(32):
        one = []
        column = thread // 4
        for block in (0, 1):
            for row in (2 * (thread % 4), 2 * (thread % 4) + 1,
                        2 * (thread % 4 + 4), 2 * (thread % 4 + 4) + 1):  # fmt: skip
                one.append(16 * row + column + 8 * block)
        for tile in range(4):
            order += [one[i] + 256 * tile for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    values = tiles[:, order].reshape(k // 16, 2 * n, 8).astype(np.int64)
    words = sum(values[..., i] << 4 * i for i in range(8)).astype(np.uint32)
    if scales.shape[0] > 1:
        moved = [i + 8 * j for i in range(8) for j in range(8)]
    else:
        moved = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    permuted = scales.reshape(-1, len(moved))[:, moved].reshape(scales.shape)
    return {
        "qweight": torch.from_numpy(words.view(np.int32)),
        "scales": torch.from_numpy(permuted.astype(np.float16)),
    }


@pytest.mark.parametrize("group_size", [-1, 16, 32, 128])
def test_marlin_with_groups_and_whole_rows(group_size):
    packed = random_packed(192, 128, 128 if group_size == -1 else group_size)
    tensors = marlin_of(packed.codes.T, packed.scales.T)
    back = awq_marlin.read_linear(tensors, group_size=group_size, name="l")
    np.testing.assert_array_equal(back.codes, packed.codes)
    np.testing.assert_array_equal(back.scales, packed.scales)
    assert back.group_size == packed.group_size
    with pytest.raises(FormatError, match=r"l.scales: config says group_size 64, tensors say"):
        awq_marlin.read_linear(tensors, group_size=64, name="l")


@pytest.mark.parametrize(
    ("n", "k", "group_size", "words"),
    [
        (12, 128, 32, "out_features is 12, not a multiple of 8 (remainder 4), .* pad by 4 to 16"),
        (8, 40, 40, "in_features is 40, not a multiple of 32 (remainder 8), .* pad by 24 to 64"),
        (8, 96, 64, "in_features is 96, not a multiple of 64 (remainder 32), .* pad by 32 to 128"),
    ],
)
def test_gemv_refuses_what_does_not_align(n, k, group_size, words):
    packed = dataclasses.replace(random_packed(n, k, k), group_size=group_size)
    pattern = "up_proj: " + words.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(AlignmentError, match=pattern):
        awq_gemv.write_linear(packed)


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (random_packed(bits=3), "up_proj has 3 bits; .* 4 bits only"),
        (random_packed(g_idx=np.zeros(128, np.int32)), r"up_proj .* \(g_idx\)"),
        (random_packed(group_size=16), "up_proj has group_size 16; .* 32, 64, and 128 or more"),
        (random_packed(k=192, group_size=96), "up_proj has group_size 96; .* 32, 64, and 128"),
        (
            quantize_weight(np.eye(8, 64) / 3, 4, 32, scale_dtype="float32", name="up_proj"),
            "up_proj: scales are float32 .* float16",
        ),
    ],
)
def test_gemv_refuses_what_it_cannot_hold(packed, words):
    with pytest.raises(FormatError, match=words):
        awq_gemv.write_linear(packed)


def readers():
    return [
        pytest.param(module, own(layout), id=layout)
        for layout, module in (
            ("gemv", awq_gemv),
            ("gemv_fast", awq_gemv_fast),
            ("marlin", awq_marlin),
        )
    ]


@pytest.mark.parametrize(("module", "tensors"), readers())
@pytest.mark.parametrize("bits", [0, 2, 3, 8, None])
def test_four_bits_only(module, tensors, bits):
    with pytest.raises(FormatError, match=f"l has {bits} bits"):
        module.read_linear(tensors, bits=bits, name="l")


@pytest.mark.parametrize(("module", "tensors"), readers())
def test_each_part_is_needed_in_its_dtype_and_shape(module, tensors):
    for part in module.TENSORS:
        others = {p: t for p, t in tensors.items() if p != part}
        with pytest.raises(FormatError, match=f"tensor l.{part} is missing"):
            module.read_linear(others, name="l")
        shape = str(tuple(tensors[part].shape)).replace("(", r"\(").replace(")", r"\)")
        for dtype in (torch.int64, torch.uint8, torch.float64, torch.float8_e4m3fn):
            changed = others | {part: tensors[part].to(dtype)}
            wanted = f"l.{part} is {str(dtype)[6:]} of shape {shape}; expected (int|float)"
            with pytest.raises(FormatError, match=wanted):
                module.read_linear(changed, name="l")
        for change in ("flatten", "t", "head", "empty", "narrow"):
            changed = others | {part: reshaped(tensors[part], change)}
            with pytest.raises(FormatError, match=r"^l\.(qweight|qzeros|scales)"):
                module.read_linear(changed, group_size=48, name="l")


def reshaped(tensor, change):
    return {
        "flatten": lambda: tensor.flatten(),
        "t": lambda: tensor.T.contiguous(),
        "head": lambda: tensor[:-1],
        "empty": lambda: tensor[:0],
        "narrow": lambda: tensor[:, :-1],
    }[change]()


@pytest.mark.parametrize("module", [awq_gemv, awq_gemv_fast])
@pytest.mark.parametrize("group_size", [16, 48, 0, -2, 100, 512])
def test_group_sizes_that_cannot_be(module, group_size):
    tensors = own("gemv" if module is awq_gemv else "gemv_fast")
    with pytest.raises(FormatError, match=f"l.scales: .*group_size {group_size}; .* 32, 64, and"):
        module.read_linear(tensors, group_size=group_size, name="l")


def test_group_size_of_the_config_is_compared():
    tensors = own("gemv")
    assert awq_gemv.read_linear(tensors, group_size=32).group_size == 32
    two_groups = awq_gemv.write_linear(random_packed(k=256, group_size=128))
    with pytest.raises(FormatError, match="l.scales: group 1 is not 0, but at group_size 256"):
        awq_gemv.read_linear(two_groups, group_size=256, name="l")
    with pytest.raises(FormatError, match="l.scales holds 8 .* expected 16 .* group_size 64"):
        awq_gemv.read_linear(two_groups, group_size=64, name="l")
    assert awq_gemv.read_linear(two_groups).group_size == 128


def test_group_size_must_be_given_where_shapes_leave_two():
    whole_rows = awq_gemv.write_linear(random_packed(k=256, group_size=256))
    with pytest.raises(FormatError, match=r"l.scales: .* \[256, 128\]; give group_size"):
        awq_gemv.read_linear(whole_rows, name="l")
    for given_size in (-1, 256):
        assert awq_gemv.read_linear(whole_rows, group_size=given_size).group_size == 256


def fast_with(scale, qzero):
    tensors = own("gemv_fast")
    tensors["scales"][2, 5], tensors["qzeros"][2, 5] = scale, qzero
    return tensors


@pytest.mark.parametrize(
    ("scale", "qzero"),
    [(1.0, -16.0), (1.0, 1.0), (0.5, float("nan")), (float("nan"), -1.0), (0.5, -float("inf")),
     (0.0, -1.0), (0.0, float("nan")), (float("inf"), -float("inf"))],
)  # fmt: skip
def test_zero_points_out_of_range(scale, qzero):
    with pytest.raises(FormatError, match=r"l.qzeros: row 5, group 2 .*\(1 of 256 are not\)"):
        awq_gemv_fast.read_linear(fast_with(scale, qzero), group_size=64, name="l")


@pytest.mark.parametrize("qzero", [0.0, -0.0, -4e-7])
def test_zero_points_of_scales_that_were_flushed_to_zero(qzero):
    packed = awq_gemv_fast.read_linear(fast_with(0.0, qzero), group_size=64, name="l")
    assert packed.zeros[5, 2] == 0 and packed.scales[5, 2] == 0


DTYPES = [torch.int32, torch.int16, torch.float16, torch.bfloat16, torch.float32, torch.bool]


@st.composite
def any_tensor(draw):
    shape = draw(
        st.lists(
            st.sampled_from([0, 1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256]), min_size=0, max_size=3
        )
        if draw(st.integers(0, 9)) == 0
        else st.tuples(*[st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256])] * 2)
    )
    dtype = draw(st.sampled_from(DTYPES))
    size = int(np.prod(shape)) * dtype.itemsize
    fill = draw(st.sampled_from([b"\0", b"\xff", b"\x3c", b"r"]))
    raw = np.random.default_rng(draw(st.integers(0, 99))).bytes(size) if fill == b"r" else None
    data = bytearray(raw if raw is not None else fill * size)
    if dtype == torch.bool:
        data = bytearray(b & 1 for b in data)
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape)


@settings(deadline=None, max_examples=300)
@given(
    layout=st.sampled_from(["gemv", "gemv_fast", "marlin"]),
    changes=st.dictionaries(
        st.sampled_from(["qweight", "qzeros", "scales", "scaled_zeros"]), any_tensor(), min_size=1
    ),
    start_whole=st.booleans(),
    group_size=st.sampled_from([None, -1, 0, 1, 16, 32, 64, 128, 256, 10**30, -(10**30)]),
)
def test_nothing_but_format_errors(layout, changes, start_whole, group_size):
    tensors = (own(layout) if start_whole else {}) | changes
    try:
        packed = LAYOUTS[f"awq_{layout}"].read_linear(tensors, group_size=group_size, name="l")
    except FormatError as error:
        assert str(error).startswith(("l.", "l: tensor l."))
        return
    assert packed.codes.max() < 16 and packed.zeros.max() < 16
    assert packed.scales.shape == packed.zeros.shape == (packed.out_features, packed.n_groups)
    assert packed.n_groups * packed.group_size == packed.in_features


@pytest.mark.parametrize(("module", "tensors"), readers())
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_contents_are_read_or_refused(module, tensors, data):
    part = data.draw(st.sampled_from(sorted(tensors)))
    seed = data.draw(st.integers(0, 2**32))
    noise = bytearray(np.random.default_rng(seed).bytes(tensors[part].nbytes))
    changed = torch.frombuffer(noise, dtype=tensors[part].dtype).reshape(tensors[part].shape)
    try:
        packed = module.read_linear(tensors | {part: changed}, name="l")
    except FormatError as error:
        assert str(error).startswith("l.")
    else:
        assert packed.codes.dtype == packed.zeros.dtype == np.uint8
