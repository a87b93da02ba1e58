"""A GPU for the CUDA backend where there is none: the interpreter of tests/ptx."""

import numpy as np
import torch
from ptx.build import kernel_program
from ptx.launch import launch as interpret

from awqbench.gemm import cuda, cuda_choice


class FakeGpu:
    """Runs programs on CPU tensors and remembers them."""

    def __init__(self, monkeypatch, arch="80", n_sm=4):
        self.arch, self.launched = arch, []
        monkeypatch.setattr(cuda, "launch", self.launch)
        facts = cuda.Facts(arch, n_sm, "interpreter")
        monkeypatch.setattr(cuda, "device_facts", lambda device: facts)
        monkeypatch.setattr(cuda_choice, "measured", dict)

    def launch(self, program, grid, block, *args):
        self.launched.append(program)
        arch = self.arch if program.kernel == "w4a16_wgmma" else self.arch.rstrip("a")
        compiled = kernel_program(program.kernel, arch, **dict(program.macros))
        interpret(compiled, grid, block, [self._argument(value) for value in args])

    @staticmethod
    def _argument(value):
        if not isinstance(value, torch.Tensor):
            return None if value is None else np.int32(value)
        # The interpreter writes back what a kernel wrote.
        assert value.is_contiguous() and value.data_ptr() % 16 == 0
        return value.view(torch.uint8).numpy() if value.dtype == torch.bfloat16 else value.numpy()

    @property
    def kernels(self):
        return [program.kernel for program in self.launched]
