"""Headers of safetensors files, good, damaged and hostile; nothing but FormatError comes out."""

import json
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from awqbench.errors import FormatError
from awqbench.formats.headers import DTYPES, read_header


def header_file(folder, header, data=b"", *, length=None, name="model.safetensors"):
    """Write a file with any header (bytes, or what JSON can say) and any claimed length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(raw) if length is None else length
    path = folder / name
    path.write_bytes(length.to_bytes(8, "little") + raw + data)
    return path


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def assert_refused(path, *words):
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert time.perf_counter() - start < 2
    for word in (path.name, *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 2500


def test_every_dtype_shape_and_place(tmp_path):
    tensors = {
        "half": torch.ones(2, 3, dtype=torch.float16),
        "brain": torch.ones(5, dtype=torch.bfloat16),
        "words": torch.ones(4, 1, dtype=torch.int32),
        "empty": torch.ones(0, 7),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "flags": torch.tensor([True]),
        "eight": torch.ones(3).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    infos = read_header(path)
    assert set(infos) == set(tensors)
    content = path.read_bytes()
    for name, tensor in tensors.items():
        info = infos[name]
        assert info.shape == tuple(tensor.shape) and info.size == tensor.numel()
        assert info.dtype == str(tensor.dtype).removeprefix("torch.")
        assert info.nbytes == tensor.numel() * tensor.element_size()
        stored = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content[info.start : info.stop] == stored
    starts = [info.start for info in infos.values()]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_are_torch_s(tmp_path, name):
    itemsize, torch_name = DTYPES[name]
    assert torch.empty(0, dtype=getattr(torch, torch_name)).element_size() == itemsize
    path = header_file(tmp_path, {"w": entry(name, (3,), (0, 3 * itemsize))}, bytes(3 * itemsize))
    assert read_header(path)["w"].dtype == torch_name


def test_no_tensors_and_metadata_only(tmp_path):
    assert read_header(header_file(tmp_path, {})) == {}
    assert read_header(header_file(tmp_path, {"__metadata__": {"format": "pt"}})) == {}


def test_data_may_lie_in_any_order(tmp_path):
    header = {
        "b": entry(offsets=(24, 48)),
        "a": entry(),
        "none": entry(shape=(0,), offsets=(24, 24)),
    }
    infos = read_header(header_file(tmp_path, header, bytes(48)))
    assert list(infos) == ["a", "none", "b"]


@pytest.mark.parametrize(
    "content", [b"", b"1234567", bytes(8), b"PK\x03\x04 a zip file", b"\x80\x02}q"]
)
def test_files_that_are_something_else(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("length", [100, 2**20, 100_000_001, 10**15, 2**63, 2**64 - 1])
def test_header_longer_than_the_file(tmp_path, length):
    assert_refused(header_file(tmp_path, {"w": entry()}, bytes(24), length=length), f"{length:,}")


@pytest.mark.parametrize("cut", [1, 23, 24])
def test_truncated_data(tmp_path, cut):
    path = header_file(tmp_path, {"first": entry(), "w": entry(offsets=(24, 48))}, bytes(48 - cut))
    assert_refused(path, "tensor w", "truncated")


def test_truncated_anywhere(tmp_path):
    whole = header_file(tmp_path, {"w": entry()}, bytes(24)).read_bytes()
    for size in range(len(whole)):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:size])
        assert_refused(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"not json",
        b"\xff\xfe{}",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"3",
        b"[" * 100_000,
        b'{"w":' * 100_000,
        b'{"w": {"shape": [' + b"9" * 5000 + b"]}}",
    ],
    ids=lambda raw: raw[:12].decode("latin1"),
)
def test_headers_that_are_not_json_objects(tmp_path, raw):
    assert_refused(header_file(tmp_path, raw), "header is not")


@pytest.mark.parametrize("value", [None, 3, "F32", [], True])
def test_entry_that_is_not_an_object(tmp_path, value):
    assert_refused(header_file(tmp_path, {"w": value}, bytes(24)), "tensor w", "not an object")


@pytest.mark.parametrize("dtype", ["F31", "f32", "", None, 3, ["F32"], {"F32": 1}, "x" * 10**6])
def test_unknown_dtype(tmp_path, dtype):
    assert_refused(header_file(tmp_path, {"w": entry(dtype)}, bytes(24)), "tensor w", "dtype")


@pytest.mark.parametrize(
    "shape",
    [
        [-2, -3],
        [-1, 3],
        [True, 3],
        [2.0, 3.0],
        ["2", 3],
        [[2], 3],
        [None],
        [2**62],
        [1e400],
        [float("nan")],
        [1] * 33,
        [0, 2**61, 2**61],
        [0] + [2**31] * 8,
        list(range(10**5)),
    ],
    ids=lambda shape: str(shape)[:24],
)
def test_impossible_shape(tmp_path, shape):
    path = header_file(tmp_path, {"w": entry(shape=shape, offsets=(0, 0))}, bytes(24))
    assert_refused(path, "tensor w", "shape")


@pytest.mark.parametrize("shape", [None, 6, "2,3", {"2": 3}])
def test_shape_that_is_no_list(tmp_path, shape):
    header = {"w": entry() | {"shape": shape}}
    assert_refused(header_file(tmp_path, header, bytes(24)), "tensor w", "shape")


@pytest.mark.parametrize(
    "offsets",
    [
        [24, 0],
        [-24, 0],
        [0],
        [],
        [0, 12, 24],
        [0.0, 24.0],
        [False, 24],
        ["0", "24"],
        [0, 2**62],
        None,
        24,
    ],
    ids=str,
)
def test_impossible_offsets(tmp_path, offsets):
    header = {"w": entry() | {"data_offsets": offsets}}
    assert_refused(header_file(tmp_path, header, bytes(48)), "tensor w", "data_offsets")


@pytest.mark.parametrize("offsets", [(0, 23), (0, 25), (0, 0), (4, 24)])
def test_offsets_that_do_not_hold_the_shape(tmp_path, offsets):
    path = header_file(tmp_path, {"w": entry(offsets=offsets)}, bytes(48))
    assert_refused(path, "tensor w", "needs 24 bytes", f"give {offsets[1] - offsets[0]}")


def test_a_tensor_of_petabytes(tmp_path):
    header = {"w": entry("F32", (2**25, 2**25), (0, 2**52))}
    assert_refused(header_file(tmp_path, header, bytes(24)), "tensor w", "truncated")


@pytest.mark.parametrize("second", [(0, 24), (4, 28), (20, 44)])
def test_overlapping_tensors(tmp_path, second):
    header = {"v": entry(), "w": entry(offsets=second)}
    assert_refused(header_file(tmp_path, header, bytes(48)), "v", "w", "overlap")


def test_overlap_hidden_by_an_empty_tensor(tmp_path):
    header = {"v": entry(), "none": entry(shape=(0,), offsets=(8, 8)), "w": entry(offsets=(20, 44))}
    assert_refused(header_file(tmp_path, header, bytes(48)), "overlap")


@pytest.mark.parametrize("name", ["\x1b[2Jw", "a\nb", "\ud800", "x" * 10**6], ids=ascii)
def test_names_that_attack_whoever_prints_them(tmp_path, name):
    path = header_file(tmp_path, {name[:2000]: entry("BAD")}, bytes(24))
    assert_refused(path, "cannot be the name of a tensor")
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path):
    assert_refused(tmp_path / "none.safetensors", "cannot be read")
    (tmp_path / "folder.safetensors").mkdir()
    assert_refused(tmp_path / "folder.safetensors", "cannot be read")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_mutation_gives_tensors_inside_the_file_or_a_format_error(tmp_path, data):
    header = {"v": entry(), "w": entry("BF16", (3, 4), (24, 48)), "__metadata__": {"format": "pt"}}
    for _ in range(data.draw(st.integers(1, 2))):
        victim = data.draw(st.sampled_from(["v", "w", "__metadata__", "new"]))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
        value = data.draw(json_values)
        if key is None or not isinstance(header.get(victim), dict):
            header[victim] = value
        else:
            header[victim][key] = value
    raw = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(
        st.just(len(raw)) | st.integers(0, 2**64 - 1) | st.integers(0, len(raw) + 60)
    )
    path = header_file(tmp_path, bytes(raw), bytes(48), length=length)
    try:
        infos = read_header(path)
    except FormatError as error:
        assert path.name in str(error)
        return
    size = path.stat().st_size
    for info in infos.values():
        assert 8 <= info.start <= info.stop <= size
        assert (
            info.nbytes
            == info.size * torch.empty(0, dtype=getattr(torch, info.dtype)).element_size()
        )
        torch.empty(info.shape, dtype=torch.uint8)  # a size that torch can make
