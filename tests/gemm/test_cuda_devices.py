"""The CUDA backend where "cuda" is a device of its own: nothing of the CPU reaches a kernel.

torch's part is played by the stand-in of tests/pretended_gpu.py, which refuses what CUDA refuses,
and the kernels' part by the interpreter of tests/ptx.
"""

import pretended_gpu
import pytest
import torch
from fake_gpu import FakeGpu
from gemm_cases import CASES, random_packed, relative_error
from pretended_gpu import Pretended, PretendedGpu

from awqbench.bench import gpu_check, gpu_paths
from awqbench.errors import DeviceError
from awqbench.formats.layouts.awq import write_linear
from awqbench.gemm import cuda, cuda_awq, cuda_nvrtc, gemm
from awqbench.quant_linear import QuantLinear

pytestmark = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu(monkeypatch, n_sm=64)

    def launch(program, grid, block, *args):
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        assert all(isinstance(tensor, Pretended) for tensor in tensors), program
        fake.launch(program, grid, block, *(getattr(value, "inner", value) for value in args))

    monkeypatch.setattr(cuda, "launch", launch)
    monkeypatch.setattr(cuda, "why_absent", lambda: "")
    monkeypatch.setattr(cuda, "finish", lambda device: None)
    # Addresses are asked for, to see that they are aligned.
    monkeypatch.setattr(pretended_gpu, "_POINTERS", pretended_gpu._POINTERS - {"data_ptr"})
    with PretendedGpu():
        yield fake


def error(y, x, packed):
    exact = x.double().cpu() @ torch.from_numpy(packed.dequantize()).double().T
    return relative_error(y.double().cpu().numpy(), exact.numpy())


@pytest.mark.parametrize("name", ["act-order, tail", "8 bits"])
def test_auto_takes_the_kernels(gpu, name):
    packed = CASES[name]()
    x = torch.randn(3, packed.in_features).half().to("cuda")
    y = gemm(x, packed)
    assert y.device == x.device and error(y, x, packed) < 6e-4
    layer = QuantLinear(packed).to("cuda")
    assert error(layer(x), x, packed) < 6e-4
    assert gpu.kernels == ["w4_repack", "w4a16_skinny"] * 2
    for multiply in (lambda: gemm(x.cpu(), packed, "cuda"), lambda: layer(x.cpu())):
        with pytest.raises(DeviceError, match="x is on cpu"):
            multiply()
    gpu.launched.clear()
    assert gemm(x.float(), packed).dtype == torch.float32 and not gpu.launched  # by torch


def test_workspaces_and_decoded_weights_are_there_too(gpu):
    packed = random_packed(72, 1024, 64, scale_dtype="float16")
    tensors = write_linear(packed)
    weight = cuda_awq.AwqWeight(
        *(tensors[name].to("cuda") for name in ("qweight", "qzeros", "scales"))
    )
    tiles = cuda_awq.to_tiles(weight)
    for m in (1, 40, 300):
        x = torch.randn(m, 1024).half().to("cuda")
        assert error(cuda.matmul(x, tiles), x, packed) < 6e-4
        assert error(cuda_awq.matmul(x, weight), x, packed) < 6e-4
    assert {"w4a16_mma", "w4a16_direct", "sum_splits", "tile_dequant", "w4_dequant"} <= set(
        gpu.kernels
    )


def test_the_check_of_a_first_run(gpu, monkeypatch):
    monkeypatch.setattr(gpu_check, "CHECKS", ((128, 24, 4, 32, (2,)),))
    table = gpu_check.check_kernels("cuda:0")
    assert len(table) == 3 and not table["is_wrong"].any(), table
    cublas = next(path for path in gpu_paths.PATHS if path.name == "cuBLAS bfloat16")
    case = gpu_paths.GpuCase(128, 24, 8, 128, device="cuda:0")
    x = torch.randn(2, 128).bfloat16().to("cuda")
    assert error(cublas.prepare(case)(x), x, case.packed) < 1e-2
