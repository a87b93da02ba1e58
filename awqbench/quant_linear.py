"""`QuantLinear`: a torch linear layer whose weight stays packed.

torch is imported at the top, for a class must have its base: this module is imported only
where a model is loaded.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from awqbench.errors import DeviceError
from awqbench.gemm import (
    array_matmul,
    check_input,
    choose_backend,
    int4pack,
    native,
    require_backend,
    torch_,
)
from awqbench.gemm.layout import TiledWeight, tile_weight, untile_weight
from awqbench.gemm.native_layout import NativeSpec, NativeWeight, stream_weight, unstream_weight
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    from awqbench.gemm.cuda import CudaWeight

# Held while buffers change to a stream: the first calls may come from several threads at once.
# (Not one for each layer, which could not be copied or pickled then.)
_CHANGING = threading.Lock()
_BUFFERS = ("codes", "scales", "zeros", "sums", "groups", "order")


class QuantLinear(nn.Module):
    """A linear layer whose weight stays packed.

    It holds the codes once, laid out for computing, and not the `PackedWeight` that it came
    from (`to_packed` gives that back). On the CPU they change, on first use, to the stream of
    the native kernels, or where those cannot be built, with bfloat16 tokens, to the order of
    ATen's int4 operator; saving, moving or a gradient changes them back, so that a state dict
    does not depend on the machine. Scales keep their own dtype under ``.to(dtype)``. On a GPU
    with float16 or bfloat16 tokens the order of the CUDA kernels is kept beside them.

    Parameters
    ----------
    packed : PackedWeight
        (N, K).
    bias : (N,) torch.Tensor, optional
    backend : {"auto", "torch", "numpy", "numexpr", "native", "cuda"}
        "auto" is native on the CPU where it can be built, cuda on a GPU, else torch; see
        `gemm`.
    activations : {"int16", "float32", "int8"}, optional
        What the native backend makes of tokens; see `gemm`.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: torch.Tensor | None = None,
        *,
        backend: str = "auto",
        activations: str | None = None,
    ) -> None:
        super().__init__()
        weight = torch_.to_tensors(tile_weight(packed))
        self.spec = weight.spec
        self.backend = backend
        self.activations = activations
        for name in _BUFFERS:
            self.register_buffer(name, getattr(weight, name))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        # The rest of an Int4Weight while `codes` is in ATen's order.
        self._int4: tuple[torch.Tensor, int] | None = None
        self._may_int4 = True
        # What the buffers hold while they are a stream: `codes` all of it, others nothing.
        self._native: NativeSpec | None = None
        # The weight once more, in the order of the CUDA kernels; "no" where they have none.
        self._cuda: CudaWeight | Literal["no"] | None = None

    @property
    def in_features(self) -> int:
        """K, columns of the weight matrix."""
        return self.spec.in_features

    @property
    def out_features(self) -> int:
        """N, rows of the weight matrix."""
        return self.spec.out_features

    @property
    def backend(self) -> str:
        """The compute path; setting one that is not available raises `BackendError`."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if name != "auto":
            require_backend(name)
        self._backend = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x Wᵀ + bias``.

        Parameters
        ----------
        x : (..., K) torch.Tensor, any floating-point dtype

        Returns
        -------
        (..., N) torch.Tensor
            Dtype and device of x.

        Raises
        ------
        DeviceError
            If x and the weight lie on different devices; names both.
        AlignmentError, ParameterError
            If x does not end in K or is not floating point.
        """
        # Read from the dict: a model calls this hundreds of times a token, and each attribute
        # of a Module costs 0.7 us. So does comparing devices.
        codes = self._buffers["codes"]
        if not (x.is_cpu and codes.is_cpu) and x.device != codes.device:
            raise DeviceError(
                f"x is on {x.device}, weight of {self.spec.name or 'QuantLinear'} is on "
                f"{codes.device}; move one with .to(...)."
            )
        spec = self.spec
        check_input(x, spec.in_features, name=spec.name)
        backend = choose_backend(x, self.backend, self.activations)
        if backend == "native":
            y = self._by_native(x)
        else:
            y = self._matmul(x.reshape(-1, spec.in_features), backend)
            y = y.reshape(*x.shape[:-1], spec.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _matmul(self, x: torch.Tensor, backend: str) -> torch.Tensor:
        if backend in ("numpy", "numexpr"):
            return self._by_arrays(x)
        if backend == "cuda":
            y = self._by_cuda(x)
            if y is not None:
                return y
        if self._native is not None:
            self._use_tiles()
        weight = self._weight()
        if self._int4 is None and self._may_int4 and int4pack.is_worthwhile(x, weight):
            int4 = int4pack.from_tiles(weight)
            self._may_int4 = int4 is not None
            if int4 is not None:
                self.codes, self._int4 = int4.codes, int4[1:]
        if self._int4 is not None and x.dtype == torch.bfloat16:
            return int4pack.matmul(x, weight, int4pack.Int4Weight(self.codes, *self._int4))
        self._use_tiles()
        return torch_.matmul(x, self._weight())

    def _by_native(self, x: torch.Tensor) -> torch.Tensor:
        self._check_on_cpu(x, "native")
        if self._native is None:
            with _CHANGING:
                if self._native is None:
                    self._use_stream()
        activations = native.choose_activations(
            self.activations,
            str(x.dtype).removeprefix("torch."),
            is_named=self.backend == "native",
        )
        return native.matmul_any(x, self._stream(), activations=activations)

    def _by_cuda(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the product, None where the kernels have no layout and may be passed over."""
        from awqbench.gemm import cuda, cuda_layout

        cuda.check_tokens(x)
        if self._cuda is None:
            packed = self.to_packed()
            passed_over = self.backend == "auto" and cuda_layout.why_not(packed)
            self._cuda = "no" if passed_over else cuda.to_device(packed, x.device)
        return None if self._cuda == "no" else cuda.matmul(x, self._cuda)

    def _check_on_cpu(self, x: torch.Tensor, backend: str) -> None:
        if not x.is_cpu:
            raise DeviceError(
                f"{self.spec.name or 'QuantLinear'} is on {x.device}, and backend "
                f"{backend!r} computes on the CPU; choose backend='torch'."
            )

    def _by_arrays(self, x: torch.Tensor) -> torch.Tensor:
        self._check_on_cpu(x, self.backend)
        self._use_tiles()
        y = array_matmul(self.backend)(x.detach().float().numpy(), torch_.to_arrays(self._weight()))
        return torch.from_numpy(y).to(x.dtype)

    def _weight(self) -> TiledWeight:
        return TiledWeight(
            self.spec, self.codes, self.scales, self.zeros, self.sums, self.groups, self.order
        )

    def _stream(self) -> NativeWeight:
        held = self._buffers
        return NativeWeight(self._native, held["codes"], held["groups"], held["order"])

    def _use_stream(self) -> None:
        """Lay the weight out for the native kernels, in place of the tiles."""
        native.library()  # raises before anything is changed
        weight = stream_weight(self.to_packed())
        self._set(
            codes=torch.from_numpy(weight.stream),
            groups=torch.from_numpy(weight.groups),
            order=None if weight.order is None else torch.from_numpy(weight.order),
            **{name: getattr(self, name).new_empty(0) for name in ("scales", "zeros", "sums")},
        )
        self._native = weight.spec

    def _set(self, **buffers: torch.Tensor | None) -> None:
        for name, value in buffers.items():
            setattr(self, name, value)

    def _use_tiles(self) -> None:
        """Take the weight back from the stream or from ATen's order, if it is in one."""
        if self._native is not None:
            weight = torch_.to_tensors(tile_weight(unstream_weight(_arrays(self._stream()))))
            self._native = None
            self._set(**{name: getattr(weight, name) for name in _BUFFERS})
        if self._int4 is not None:
            int4 = int4pack.Int4Weight(self.codes, *self._int4)
            self.codes, self._int4 = int4pack.to_tiles(self._weight(), int4).codes, None

    def to_packed(self) -> PackedWeight:
        """Return the weight as a `PackedWeight`, equal to the one it was made from."""
        if self._native is not None:
            return unstream_weight(_arrays(self._stream()))
        self._use_tiles()
        return untile_weight(torch_.to_arrays(self._weight()))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the decoded weight, (N, K) torch.Tensor on this device.

        Decoded in float32 and rounded once to `dtype`: float16, for a weight with float16
        scales, gives what AutoAWQ and GPTQModel decode, bit for bit. `forward` multiplies by
        the unrounded weight where it computes in float32.
        """
        decoded = torch.from_numpy(self.to_packed().dequantize())
        return decoded.to(self.codes.device, dtype)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of its repr."""
        spec = self.spec
        return (
            f"in_features={spec.in_features}, out_features={spec.out_features}, "
            f"bits={spec.bits}, group_size={spec.group_size}, zero_point={spec.zero_point}, "
            f"bias={self.bias is not None}, backend={self.backend!r}"
        )

    def _apply(self, fn, recurse=True):
        self._use_tiles()
        self._cuda = None
        before = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != before.dtype:
            self.scales = before.to(self.scales.device)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self._use_tiles()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args, **kwargs):
        self._use_tiles()
        self._cuda = None
        super()._load_from_state_dict(*args, **kwargs)


def _arrays(weight: NativeWeight) -> NativeWeight:
    order = None if weight.order is None else weight.order.numpy()
    return weight._replace(stream=weight.stream.numpy(), groups=weight.groups.numpy(), order=order)
