"""The CUDA backend on a GPU, where there is one: what the interpreter cannot show."""

import pytest
import torch
from gemm_cases import random_packed, relative_error

from awqbench.bench import gpu_check
from awqbench.errors import DeviceError
from awqbench.gemm import cuda, gemm

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(cuda.why_absent()),
    reason=cuda.why_absent() or "torch finds no CUDA device",
)


def tokens_and_weight(m=4):
    packed = random_packed(264, 512, 128, scale_dtype="float16")
    return torch.randn(m, 512, device="cuda").half(), packed


def error(y, x, packed):
    exact = x.double().cpu().numpy() @ packed.dequantize().astype("float64").T
    return relative_error(y.double().cpu().numpy(), exact)


def test_every_kernel_against_float64():
    table = gpu_check.check_kernels("cuda:0")
    assert not table["is_wrong"].any(), table[table["is_wrong"]]


def test_auto_takes_the_kernels_and_refuses_two_devices():
    x, packed = tokens_and_weight()
    y = gemm(x, packed)
    assert y.device == x.device and error(y, x, packed) < 6e-4
    weight = cuda.to_device(packed, x.device)
    with pytest.raises(DeviceError, match="x is on cpu, the weight on cuda:0"):
        cuda.matmul(x.cpu(), weight)
    with pytest.raises(DeviceError, match="x is on cpu"):
        gemm(x.cpu(), packed, "cuda")


@pytest.mark.parametrize("m", [4, 40])
def test_a_graph_replays_with_new_tokens(m):
    x, packed = tokens_and_weight(m)
    weight = cuda.to_device(packed, x.device)
    cuda.matmul(x, weight)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cuda.matmul(x, weight)
    x.copy_(torch.randn_like(x))
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert error(y, x, packed) < 1e-3


def test_kernels_run_on_the_current_stream():
    x, packed = tokens_and_weight()
    weight = cuda.to_device(packed, x.device)
    cuda.matmul(x, weight)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would read x too early
        x.copy_(torch.randn_like(x))
        y = cuda.matmul(x, weight)
    stream.synchronize()
    assert error(y, x, packed) < 6e-4
