"""The native kernels: every level against NumPy, precision by name, threads, misuse."""

import copy
import multiprocessing
import os
import pickle
import sys
import threading
from subprocess import run as run_process

import numpy as np
import pytest
import torch
from gemm_cases import CASES, SHAPES, random_packed, relative_error, tokens_for

from awqbench.errors import BackendError, DeviceError, ParameterError
from awqbench.gemm import available_backends, gemm, native
from awqbench.gemm.native_layout import NativeSpec, stream_weight, unstream_weight
from awqbench.packed import quantize_weight
from awqbench.quant_linear import QuantLinear

pytestmark = pytest.mark.skipif(
    bool(available_backends()["native"]), reason="there is no compiler here"
)
# Of a level's result to float64, on normal tokens.
LIMITS = {"int16": 1e-4, "float32": 1e-6, "int8": 2e-2}


def levels():
    return list(native.library().levels)


def exact_product(x, packed):
    return x.astype(np.float64) @ packed.dequantize().astype(np.float64).T


@pytest.mark.parametrize("case", CASES)
def test_stream_round_trip(case):
    packed = CASES[case]()
    weight = stream_weight(packed)
    assert weight.stream.ctypes.data % 64 == 0
    assert len(weight.stream) == weight.spec.nbytes
    back = unstream_weight(weight)
    for field in ("codes", "scales", "zeros", "g_idx"):
        np.testing.assert_array_equal(getattr(back, field), getattr(packed, field))
    for field in ("bits", "group_size", "zero_point", "scale_dtype", "name"):
        assert getattr(back, field) == getattr(packed, field)


def test_stream_keeps_a_group_without_channels():
    g_idx = np.repeat(np.array([0, 2], np.int32), 32)
    packed = random_packed(16, 64, 32, g_idx=g_idx)
    back = unstream_weight(stream_weight(packed))
    assert packed.n_groups == 3
    np.testing.assert_array_equal(back.scales, packed.scales)


def test_stream_is_as_small_as_the_packed_weight():
    weight = stream_weight(random_packed(256, 1024, 128, scale_dtype="float16"))
    # 4 bits a code; 2 bytes of scale and 1 of zero point for 128 of them.
    assert weight.spec.nbytes == 256 * 1024 // 2 + 3 * 256 * 1024 // 128


@pytest.mark.parametrize(
    "dtype, scale, stored",
    [("float16", 0.01, "float16"), ("bfloat16", 1e30, "bfloat16"), ("float32", 0.01, "float32")],
)
def test_scales_take_the_narrowest_exact_type(dtype, scale, stored):
    packed = random_packed(16, 64, 32, scale=scale, scale_dtype=dtype)
    assert stream_weight(packed).spec.stored_scales == stored


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
@pytest.mark.parametrize("case", SHAPES)
def test_every_level_agrees_with_float64(case, activations):
    packed = SHAPES[case]()
    weight = stream_weight(packed)
    for level in levels():
        for m in (0, 1, 2, 3, 5, 6, 12, 17, 129):
            x = tokens_for(packed, m)
            threads = 1 + m % 8
            y = native.matmul(x, weight, activations=activations, level=level, threads=threads)
            error = relative_error(y, exact_product(x, packed))
            assert error <= LIMITS[activations], (level, m)


@pytest.mark.parametrize("factor", [100, 1000])
@pytest.mark.parametrize("m", [1, 4, 5, 16, 70])
def test_int16_keeps_outliers(m, factor):
    weight = np.random.default_rng(0).standard_normal((512, 1024))
    packed = quantize_weight(weight, group_size=128)
    x = tokens_for(packed, m)
    x[:, [7, 300, 500, 900]] *= factor
    exact = exact_product(x, packed)
    weight = stream_weight(packed)
    assert relative_error(native.matmul(x, weight), exact) <= 1e-4
    # What the other choices make of the same tokens: float32 nothing, int8 much.
    assert relative_error(native.matmul(x, weight, activations="float32"), exact) <= 1e-6
    assert 1e-3 < relative_error(native.matmul(x, weight, activations="int8"), exact) <= 5e-2


def test_levels_agree():
    """Sums of int16 are exact, so that levels differ by the rounding of float32 alone."""
    packed = random_packed(100, 384, 64)
    x = tokens_for(packed, 9)
    weight = stream_weight(packed)
    best = native.matmul(x, weight).astype(np.float64)
    for level in levels():
        assert relative_error(native.matmul(x, weight, level=level), best) <= 1e-5, level


def test_result_does_not_depend_on_threads():
    packed = random_packed(300, 512, 128)
    weight = stream_weight(packed)
    x = tokens_for(packed, 40)
    for activations in native.ACTIVATIONS:
        expected = native.matmul(x, weight, activations=activations, threads=1)
        for threads in range(2, 9):
            y = native.matmul(x, weight, activations=activations, threads=threads)
            np.testing.assert_array_equal(y, expected)
        # Few tokens are made integers in shorter pieces: more precisely, so not bit by bit.
        alone = [native.matmul(x[i : i + 1], weight, activations=activations) for i in range(40)]
        error = relative_error(np.concatenate(alone), expected.astype(np.float64))
        assert error <= 2 * LIMITS[activations]


@pytest.mark.parametrize("scale", [1e-45, 1e-39, 1e-33, 1e-25, 1e25])
def test_tokens_of_any_size(scale):
    packed = random_packed(64, 256, 64)
    x = tokens_for(packed, 4) * np.float32(scale)
    y = native.matmul(x, stream_weight(packed))
    # Below the normal range a step of float32 itself is 1.4e-45.
    slack = 1e-45 * np.sqrt(y.size)
    exact = exact_product(x, packed)
    assert np.linalg.norm(y - exact) <= 1e-4 * np.linalg.norm(exact) + slack


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
def test_nan_scale_is_seen_in_its_column_only(activations):
    packed = random_packed(70, 256, 64)
    packed.scales[3, 1], packed.scales[9, 0] = np.nan, np.inf
    x = tokens_for(packed, 7)
    y = native.matmul(x, stream_weight(packed), activations=activations)
    with np.errstate(invalid="ignore"):
        exact = exact_product(x, packed)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    others = np.setdiff1d(np.arange(70), [3, 9])
    assert relative_error(y[:, others], exact[:, others]) <= LIMITS[activations]


def test_strided_and_unaligned_tokens():
    packed = random_packed(40, 160, 64)
    weight = stream_weight(packed)
    x = tokens_for(packed, 6)
    expected = native.matmul(x, weight)
    wide = np.zeros((12, 400), np.float32)
    wide[::2, 3:163] = x
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[:] = x
    assert not shifted.flags.aligned
    for view in (wide[::2, 3:163], np.asfortranarray(x), shifted):
        np.testing.assert_array_equal(native.matmul(view, weight), expected)
    flipped = native.matmul(x[::-1], weight)
    np.testing.assert_array_equal(flipped[::-1], expected)
    tensor = torch.from_numpy(wide)[::2, 3:163]
    np.testing.assert_array_equal(native.matmul(tensor, weight).numpy(), expected)


@pytest.mark.parametrize("m", [1, 40])
def test_bfloat16_is_rounded_once(m):
    packed = random_packed(100, 256, 128)
    x = torch.from_numpy(tokens_for(packed, m)).bfloat16()
    y = native.matmul(x, stream_weight(packed))
    wide = native.matmul(x.float(), stream_weight(packed))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wide.bfloat16(), rtol=0, atol=0)


def test_many_tokens():
    packed = random_packed(72, 128, 64)
    x = tokens_for(packed, 2500)
    x[2400, 5] = np.nan
    y = native.matmul(x, stream_weight(packed), threads=3)
    assert np.isnan(y[2400]).all()
    others = np.arange(2500) != 2400
    assert relative_error(y[others], exact_product(x[others], packed)) <= 1e-4


def test_from_several_python_threads():
    packed = random_packed(256, 512, 128)
    weight = stream_weight(packed)
    tokens = [tokens_for(packed, m) for m in (1, 3, 16, 40)]
    expected = [native.matmul(x, weight, threads=1) for x in tokens]
    wrong = []

    def work(i):
        for _ in range(50):
            y = native.matmul(tokens[i], weight, threads=2)
            if not np.array_equal(y, expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


POOL_SCRIPT = """
import os, sys
import numpy as np
from awqbench.gemm import native
from awqbench.gemm.native_layout import stream_weight
from awqbench.packed import quantize_weight
assert "torch" not in sys.modules
packed = quantize_weight(np.random.default_rng(0).standard_normal((512, 256)), group_size=64)
weight, x = stream_weight(packed), np.ones((30, 256), np.float32)
expected = native.matmul(x, weight, threads=1)
for threads in (2, 5, 3, 8):
    for _ in range(20):
        assert np.array_equal(native.matmul(x, weight, threads=threads), expected)
child = os.fork()
good = np.array_equal(native.matmul(x, weight, threads=4), expected)
if child == 0:
    os._exit(not good)
assert good and os.waitpid(child, 0)[1] == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the pool's forked child needs fork")
def test_own_threads_without_torch_and_after_fork():
    done = run_process([sys.executable, "-c", POOL_SCRIPT], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def forked(queue):
    packed = CASES["plain"]()
    x = tokens_for(packed, 5)
    queue.put(relative_error(gemm(x, packed, "native"), exact_product(x, packed)))


@pytest.mark.skipif(sys.platform != "linux", reason="fork with threads")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_of_a_process_with_torch():
    packed = CASES["plain"]()
    gemm(torch.from_numpy(tokens_for(packed, 5)), packed, "native")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=forked, args=(queue,))
    child.start()
    assert queue.get(timeout=60) <= 1e-4
    child.join()


def test_precision_is_chosen_by_name():
    packed = random_packed(256, 512, 128)
    x = tokens_for(packed, 4)
    exact = exact_product(x, packed)

    def error(**settings):
        return relative_error(gemm(x, packed, **settings), exact)

    # By itself a float32 array is multiplied as precisely as NumPy does.
    assert error() <= 1e-6 and error(backend="native", activations="float32") <= 1e-6
    assert 1e-6 < error(backend="native") <= 1e-4
    assert 1e-6 < error(activations="int16") <= 1e-4
    assert 1e-4 < error(activations="int8") <= 2e-2


def test_misuse():
    packed = CASES["plain"]()
    x = tokens_for(packed, 2)
    with pytest.raises(ParameterError, match="no activations 'int4'; choose one of int16, float"):
        gemm(x, packed, activations="int4")
    with pytest.raises(ParameterError, match="a choice of backend 'native', and 'numpy'"):
        gemm(x, packed, "numpy", activations="int8")
    weight = stream_weight(packed)
    with pytest.raises(ParameterError, match="x is float64; the kernels take arrays of float32"):
        native.matmul(x.astype(np.float64), weight)
    with pytest.raises(ParameterError, match="threads is 0"):
        native.matmul(x, weight, threads=0)
    with pytest.raises(ParameterError, match="no level 'sse9'.*portable"):
        native.matmul(x, weight, level="sse9")
    with pytest.raises(ParameterError, match="floating point"):
        gemm(x.astype(np.int32), packed, "native")
    with pytest.raises(DeviceError, match="x is on meta, and backend 'native'"):
        gemm(torch.ones(2, 256, device="meta"), packed, "native")


def test_a_level_that_is_wrong_is_disabled(monkeypatch):
    native._load.cache_clear()
    wrong = native._self_test
    monkeypatch.setattr(
        native,
        "_self_test",
        lambda found, level: "it is wrong" if level != "portable" else wrong(found, level),
    )
    try:
        found = native.library()
        assert list(found.levels) == ["portable"]
        assert set(found.disabled.values()) <= {"it is wrong"}
        packed = CASES["plain"]()
        for name in found.disabled:
            with pytest.raises(ParameterError, match=f"no level '{name}': it is wrong"):
                native.matmul(tokens_for(packed, 1), stream_weight(packed), level=name)
    finally:
        native._load.cache_clear()


def test_self_test_sees_a_wrong_result(monkeypatch):
    found = native.library()
    level = next(iter(found.levels))
    assert native._self_test(found, level) == ""
    honest = native._run

    def damaged(found, weight, call):
        call.activations = 2  # int8 where something better was asked for
        honest(found, weight, call)

    monkeypatch.setattr(native, "_run", damaged)
    assert "int16 activations is wrong by" in native._self_test(found, level)


def test_auto_without_native(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: "nothing compiles here.")
    monkeypatch.setattr(native, "why_absent", lambda: "nothing compiles here.")
    packed = CASES["plain"]()
    x = tokens_for(packed, 2)
    exact = exact_product(x, packed)
    assert relative_error(gemm(x, packed), exact) <= 1e-6
    assert relative_error(gemm(torch.from_numpy(x), packed).numpy(), exact) <= 1e-6
    with pytest.raises(BackendError, match="'native' is not available: nothing compiles"):
        gemm(x, packed, "native")


@pytest.fixture
def linear():
    packed = random_packed(128, 256, 64, scale_dtype="float16")
    return QuantLinear(packed, torch.arange(128.0))


def test_linear_holds_one_stream_and_gives_the_weight_back(linear):
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    packed = linear.to_packed()
    x = torch.randn(3, 256)
    y = linear(x)
    assert isinstance(linear._native, NativeSpec)
    held = sum(tensor.nbytes for tensor in linear.buffers())
    assert held <= linear._native.nbytes + 4 * linear._native.n_chunks
    np.testing.assert_array_equal(linear.to_packed().codes, packed.codes)
    assert linear._native is not None  # reading it did not change its form
    assert torch.equal(copy.deepcopy(linear)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x), y)
    after = linear.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(linear(x), y)


def test_linear_changes_form_as_it_is_used(linear):
    x = torch.randn(3, 256)
    exact = x.double() @ linear.dequantize().double().T + linear.bias.double()
    for backend in ("native", "numpy", "auto", "torch", "native"):
        linear.backend = backend
        torch.testing.assert_close(linear(x).double(), exact, rtol=1e-3, atol=1e-3)
    wanted = x.clone().requires_grad_()
    linear.backend = "auto"
    linear(wanted).sum().backward()
    torch.testing.assert_close(wanted.grad[0], linear.dequantize().sum(0), rtol=1e-4, atol=1e-4)


def test_linear_precision(linear):
    x = torch.randn(8, 256)
    exact = (x.double() @ linear.dequantize().double().T + linear.bias.double()).numpy()
    limits = {None: 1e-6, "float32": 1e-6, "int16": 1e-4, "int8": 2e-2}
    for activations, limit in limits.items():
        linear.activations = activations
        assert relative_error(linear(x).numpy(), exact) <= limit
    half = linear(x.bfloat16())
    assert half.dtype == torch.bfloat16 and relative_error(half.double().numpy(), exact) <= 1e-2


def test_linear_takes_tokens_of_any_shape(linear):
    x = torch.randn(2, 3, 256)
    rows = linear(x.reshape(6, 256))
    assert torch.equal(linear(x).reshape(6, 128), rows)
    swapped = x.transpose(0, 1)
    assert not swapped.is_contiguous()
    assert torch.equal(linear(swapped), linear(x).transpose(0, 1))
    assert linear(torch.empty(2, 0, 256)).shape == (2, 0, 128)
    assert torch.equal(linear(x[0, 0]), linear(x[:1, 0])[0])
    with pytest.raises(DeviceError, match="x is on meta, weight of layers.0.up is on cpu"):
        linear(torch.empty(2, 256, device="meta"))


def test_linear_from_several_threads_at_first_use(linear):
    x = torch.randn(3, 256)
    expected = copy.deepcopy(linear)(x)
    results = []
    callers = [threading.Thread(target=lambda: results.append(linear(x))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6 and all(torch.equal(y, expected) for y in results)
