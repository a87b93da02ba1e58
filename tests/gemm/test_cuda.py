"""The CUDA backend without a GPU: kernels run in the interpreter of tests/ptx.

What stands in for CuPy is `cuda.launch` alone: choices, grids, arguments, workspaces, padding
and orders are those of a GPU machine.
"""

import sys

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu
from gemm_cases import CASES, random_packed, relative_error

from awqbench.errors import (
    AlignmentError,
    BackendError,
    DeviceError,
    FormatError,
    ParameterError,
)
from awqbench.formats.layouts.awq import write_linear
from awqbench.gemm import cuda, cuda_awq, cuda_choice, cuda_driver, cuda_nvrtc, gemm
from awqbench.packed import quantize_weight
from awqbench.quant_linear import QuantLinear

pytestmark = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty returns with NaN: a place that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def tokens_of(m, k, dtype):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(dtype)


def check(y, x, packed, limit):
    exact = x.double().numpy() @ packed.dequantize().astype(np.float64).T
    assert y.dtype == x.dtype and y.shape == exact.shape
    error = relative_error(y.double().numpy(), exact)
    assert error <= limit, error


# fp16 rounds y (3e-4); bf16 too, and from 33 tokens on the weights.
LIMITS = {torch.float16: 6e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize(
    ("m", "arch", "dtype", "make", "kernels"),
    [
        (1, "80", torch.float16, "tail", ["w4a16_skinny"]),
        (9, "75", torch.float16, "act-order, tail", ["w4a16_skinny"]),
        (3, "80", torch.bfloat16, "8 bits", ["w4a16_skinny"]),
        (32, "80", torch.float16, "whole rows", ["w4a16_skinny"]),
        (40, "80", torch.float16, "group of 256", ["w4a16_mma"]),
        (70, "90a", torch.bfloat16, "3 bits", ["w4a16_wgmma"]),
        (33, "75", torch.float16, "act-order", ["tile_dequant"]),
    ],
)
def test_products_are_right(monkeypatch, m, arch, dtype, make, kernels):
    gpu = FakeGpu(monkeypatch, arch)
    packed = CASES[make]()
    weight = cuda.to_device(packed, torch.device("cpu"))
    x = tokens_of(m, packed.in_features, dtype)
    check(cuda.matmul(x, weight), x, packed, LIMITS[dtype])
    assert gpu.kernels == ["w4_repack", *kernels]


@pytest.mark.parametrize("make", ["tail", "groups of 24"])
def test_a_linear_layer_lays_its_weight_out_once(monkeypatch, make):
    """With "auto", a weight that fits no tiles is multiplied by torch."""
    gpu = FakeGpu(monkeypatch, "80")
    monkeypatch.setattr(cuda, "check_tokens", lambda x: None)
    monkeypatch.setattr("awqbench.quant_linear.choose_backend", lambda *args: "cuda")
    made = []
    to_device = cuda.to_device
    monkeypatch.setattr(cuda, "to_device", lambda *args: made.append(1) or to_device(*args))
    packed = random_packed(96, 160, 24 if make == "groups of 24" else 64)
    layer = QuantLinear(packed)
    x = tokens_of(3, packed.in_features, torch.float16)
    for _ in range(2):
        check(layer(x.reshape(1, 3, -1))[0], x, packed, LIMITS[x.dtype])
    fits = make == "tail"
    assert (len(made), bool(gpu.launched)) == (fits, fits)
    layer.to(torch.float64)  # moved or cast: laid out anew
    assert layer._cuda is None


def test_split_sums_are_added(monkeypatch):
    gpu = FakeGpu(monkeypatch, "80", n_sm=64)
    packed = random_packed(200, 2048, 128, scale_dtype="float16")
    x = tokens_of(50, 2048, torch.float16)
    check(cuda.matmul(x, cuda.to_device(packed, torch.device("cpu"))), x, packed, 6e-4)
    assert gpu.kernels == ["w4_repack", "w4a16_mma", "sum_splits"]


def test_awq_tensors_as_they_are(monkeypatch):
    gpu = FakeGpu(monkeypatch, n_sm=8)
    packed = quantize_weight(
        np.random.default_rng(0).standard_normal((264, 2048)), group_size=64, scale_dtype="float16"
    )
    tensors = write_linear(packed)
    weight = cuda_awq.AwqWeight(*(tensors[name] for name in ("qweight", "qzeros", "scales")))
    for m, kernels in ((1, ["w4a16_direct", "sum_splits"]), (40, ["w4_dequant"])):
        gpu.launched.clear()
        x = tokens_of(m, 2048, torch.float16)
        check(cuda_awq.matmul(x, weight), x, packed, 6e-4)
        assert gpu.kernels == kernels
    expected = torch.from_numpy(packed.dequantize()).half().T
    assert torch.equal(cuda_awq.dequantize(weight, torch.float16), expected)
    tiles, own = cuda_awq.to_tiles(weight), cuda.to_device(packed, torch.device("cpu"))
    assert tiles.spec == own.spec
    assert all(torch.equal(a, b) for a, b in zip(tiles[1:4], own[1:4], strict=True))


def test_decoded_weights_are_the_definition_rounded(monkeypatch):
    FakeGpu(monkeypatch)
    packed = CASES["bfloat16 scales"]()
    weight = cuda.to_device(packed, torch.device("cpu"))
    expected = torch.from_numpy(packed.dequantize())
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(cuda.dequantize(weight, dtype), expected.to(dtype))


def test_rows_that_are_not_finite_stay_alone(monkeypatch):
    FakeGpu(monkeypatch)
    packed = CASES["plain"]()
    weight = cuda.to_device(packed, torch.device("cpu"))
    x = tokens_of(5, packed.in_features, torch.float16)
    clean = x.clone()
    x[0, 0], x[2, 1], clean[0], clean[2] = float("nan"), float("inf"), 0, 0
    y, expected = cuda.matmul(x, weight), cuda.matmul(clean, weight)
    exact = x.double() @ torch.from_numpy(packed.dequantize()).double().T
    assert torch.equal(y[[1, 3, 4]], expected[[1, 3, 4]])
    assert y[0].isnan().all()
    np.testing.assert_array_equal(y[2].double().numpy(), exact[2].numpy())


@pytest.mark.parametrize("name", ["whole rows", "plain"])  # K = 300 is padded to 304, 256 is not
def test_tokens_of_any_stride_and_none(monkeypatch, name):
    gpu = FakeGpu(monkeypatch)
    packed = CASES[name]()
    n, k = packed.codes.shape
    weight = cuda.to_device(packed, torch.device("cpu"))
    x = tokens_of(4, 2 * k, torch.float16)
    expected = cuda.matmul(x[:, ::2].contiguous(), weight)
    assert torch.equal(cuda.matmul(x[:, ::2], weight), expected)
    shifted = x.flatten()[1 : 1 + 4 * k].view(4, k)  # 2 bytes past a multiple of 16
    check(cuda.matmul(shifted, weight), shifted, packed, 6e-4)
    gpu.launched.clear()
    assert cuda.matmul(x[:0, :k], weight).shape == (0, n) and not gpu.launched


def test_a_measured_choice_comes_before_the_rules(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    packed = CASES["plain"]()
    weight = cuda.to_device(packed, torch.device("cpu"))
    x = tokens_of(2, packed.in_features, torch.float16)
    by_rule = cuda.choose(2, weight, x.dtype)
    settings = {"arch": "80", "n_sm": 4, "is_bf16": False}
    other = next(
        found
        for found in cuda_choice.candidates(2, weight.spec, **settings)
        if found.program != by_rule.program
    )
    key = cuda_choice.key_of("interpreter", 2, weight.spec, is_bf16=False)
    monkeypatch.setattr(cuda_choice, "measured", lambda: {key: str(other.program)})
    gpu.launched.clear()
    check(cuda.matmul(x, weight), x, packed, 6e-4)
    assert gpu.launched == [other.program]
    monkeypatch.setattr(cuda_choice, "measured", lambda: {key: "dense"})
    assert cuda.choose(2, weight, x.dtype) is None


def test_memory_beyond_the_tensors_is_not_touched(monkeypatch):
    """The interpreter faults at any byte outside an argument."""
    gpu = FakeGpu(monkeypatch)
    packed = random_packed(33, 168, 32, scale_dtype="float16")
    weight = cuda.to_device(packed, torch.device("cpu"))
    for m in (1, 12, 35):
        x = tokens_of(m, 168, torch.float16)
        check(cuda.matmul(x, weight), x, packed, 6e-4)
    assert set(gpu.kernels) == {"w4_repack", "w4a16_skinny", "w4a16_mma"}


def test_refuses_what_it_cannot_multiply():
    x = torch.zeros(1, 256, dtype=torch.float16)
    with pytest.raises(DeviceError, match="x is on cpu"):
        cuda.check_tokens(x)
    with pytest.raises(AlignmentError, match="33, not a multiple of 32"):
        cuda.to_device(CASES["odd group"](), torch.device("cpu"))
    with pytest.raises(ParameterError, match="float16 and bfloat16"):
        cuda.check_tokens(_OnGpu())
    with pytest.raises(ParameterError, match="x is torch.float32"):
        cuda.align_tokens(x.float())
    meta = torch.zeros(1, 256, device="meta", dtype=torch.float16)
    awq = cuda_awq.AwqWeight(
        torch.zeros(256, 2, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(2, 16, dtype=torch.float16),
    )
    with pytest.raises(DeviceError, match="x is on meta, the weight on cpu"):
        cuda_awq.matmul(meta, awq)
    with pytest.raises(FormatError, match="contiguous"):
        cuda_awq.check_weight(awq._replace(qweight=torch.zeros(2, 256).int().T))
    # Loads of 16 bytes at an address that is not a multiple would end the process's context.
    shifted = torch.zeros(2 * 16 + 2, dtype=torch.float16)[2:].view(2, 16)
    with pytest.raises(FormatError, match="no multiple of 16"):
        cuda_awq.check_weight(awq._replace(scales=shifted))
    with pytest.raises(ParameterError, match="x is torch.float32"):
        cuda_awq.matmul(x.float(), awq)
    with pytest.raises(FormatError, match="qweight"):
        cuda_awq.check_weight(awq._replace(qzeros=awq.qzeros[:1]))
    with pytest.raises(AlignmentError, match="multiple of 32"):
        cuda_awq.check_weight(
            awq._replace(qzeros=torch.zeros(16, 2).int(), scales=torch.zeros(16, 16).half())
        )


class _OnGpu:
    device, dtype, requires_grad = torch.device("cuda", 0), torch.float32, False


def test_a_gpu_that_is_too_old_is_left_to_torch(monkeypatch):
    class Properties:
        name, major, minor, multi_processor_count = "Tesla V100", 7, 0, 80

    x = _OnGpu()
    x.dtype = torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda.device_facts.cache_clear()
    assert not cuda.takes(x)
    with pytest.raises(BackendError, match=r"Tesla V100 has compute capability 7.0"):
        cuda.device_facts(x.device)
    Properties.minor = 5
    try:
        assert cuda.takes(x) and cuda.device_facts(x.device).arch == "75"
        x.dtype = torch.bfloat16
        assert not cuda.takes(x)
    finally:
        cuda.device_facts.cache_clear()


def test_tokens_of_another_width_are_refused(monkeypatch):
    """The kernels would read beyond the weight."""
    gpu = FakeGpu(monkeypatch)
    weight = cuda.to_device(CASES["plain"](), torch.device("cpu"))
    gpu.launched.clear()
    for shape in ((1, 264), (1, 1, 256), (256,)):
        with pytest.raises(AlignmentError, match=r"takes \(M, 256\)"):
            cuda.matmul(torch.zeros(shape, dtype=torch.float16), weight)
    assert not gpu.launched


def test_a_weight_is_laid_out_before_it_is_returned(monkeypatch):
    """It is kept, and the next product may run on another stream."""
    FakeGpu(monkeypatch)
    waited = []
    monkeypatch.setattr(cuda, "finish", lambda device: waited.append(device.type))
    cuda.to_device(CASES["plain"](), torch.device("cpu"))
    tensors = write_linear(quantize_weight(np.eye(16, 128), scale_dtype="float16"))
    cuda_awq.to_tiles(cuda_awq.AwqWeight(*(tensors[n] for n in ("qweight", "qzeros", "scales"))))
    assert waited == ["cpu", "cpu"]
    monkeypatch.undo()

    class Stream:
        def synchronize(self):
            waited.append("stream")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    cuda.finish(torch.device("cuda", 1))
    assert waited[-1] == "stream"


def test_without_a_driver_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(cuda_driver, "_TRACES", ("/nowhere",))
    cuda.why_absent.cache_clear()
    try:
        with pytest.raises(BackendError, match="no driver"):
            gemm(torch.zeros(1, 256), CASES["plain"](), "cuda")
        assert gemm(torch.zeros(1, 256), CASES["plain"]()).shape == (1, 96)
    finally:
        cuda.why_absent.cache_clear()


def test_a_program_that_the_driver_refuses_is_named(monkeypatch, tmp_path):
    class Refused(RuntimeError):
        pass

    class FakeCupy:
        class cuda:  # noqa: N801
            class driver:  # noqa: N801
                CUDADriverError = Refused

        class RawModule:
            def __init__(self, path):
                self.path = path

            def get_function(self, name):
                return self

            @property
            def kernel(self):
                if self.path.endswith("bad.cubin"):
                    raise Refused("CUDA_ERROR_INVALID_IMAGE")
                return f"function of {self.path}"

    monkeypatch.setitem(sys.modules, "cupy", FakeCupy)
    program = cuda.Program.of("sum_splits", BF16=0)
    files = iter((tmp_path / "bad.cubin", "good.cubin"))
    monkeypatch.setattr(cuda.cuda_build, "cubin_file", lambda *key: next(files))
    cuda._kernel.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"bad.cubin \(CUDA_ERROR_INVALID_IMAGE\)"):
            cuda._kernel(program, "90a", 0)
        assert cuda._kernel(program, "90a", 0) == "function of good.cubin"
        assert cuda._kernel(program, "90a", 0) == "function of good.cubin"  # loaded once
    finally:
        cuda._kernel.cache_clear()


def test_arguments_as_cupy_takes_them(monkeypatch):
    """The part that `FakeGpu` leaves out: devices, stream, and the types of arguments."""
    calls = []

    class Entered:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    class FakeCupy:
        class cuda:  # noqa: N801
            Device = Entered

    monkeypatch.setitem(sys.modules, "cupy", FakeCupy)
    monkeypatch.setattr(torch.cuda, "device", Entered)
    streams = iter((11, 22))

    class Stream:
        def __init__(self):
            self.cuda_stream = next(streams)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(cuda, "device_facts", lambda device: cuda.Facts("90a", 132, "fake"))
    monkeypatch.setattr(
        cuda, "_kernel", lambda *key: lambda *call, **more: calls.append((key, call, more))
    )
    x = torch.zeros(4)
    program = cuda.Program.of("sum_splits", BF16=0)
    for _ in range(2):
        cuda.launch(program, (3,), (256,), x, None, 7)
    (key, (grid, block, args), more), second = calls
    assert key == (program, "90a", None) and (grid, block) == ((3,), (256,))
    assert [type(value) for value in args] == [np.uint64, np.uint64, np.int32]
    assert [int(value) for value in args] == [x.data_ptr(), 0, 7]
    assert more["stream"].ptr == 11
    assert second[2]["stream"].ptr == 22  # taken at each call
