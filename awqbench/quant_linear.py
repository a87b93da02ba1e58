"""`QuantLinear`: a torch linear layer whose weight stays packed.

torch is imported at the top, for a class must have its base: this module is imported only
where a model is loaded.
"""

from __future__ import annotations

import torch
from torch import nn

from awqbench.errors import DeviceError
from awqbench.gemm import array_matmul, check_input, int4pack, require_backend, torch_
from awqbench.gemm.layout import TiledWeight, tile_weight, untile_weight
from awqbench.packed import PackedWeight


class QuantLinear(nn.Module):
    """A linear layer whose weight stays packed.

    It holds the codes once, laid out for computing, and not the `PackedWeight` that it came
    from (`to_packed` gives that back). With bfloat16 tokens on the CPU the codes change, on
    first use, to the order of ATen's int4 operator; saving, moving or another dtype changes
    them back, so that a state dict does not depend on the machine. Scales keep their own
    dtype under ``.to(dtype)``.

    Parameters
    ----------
    packed : PackedWeight
        (N, K).
    bias : (N,) torch.Tensor, optional
    backend : {"auto", "torch", "numpy", "numexpr"}
        "auto" is torch.
    """

    def __init__(
        self, packed: PackedWeight, bias: torch.Tensor | None = None, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        weight = torch_.to_tensors(tile_weight(packed))
        self.spec = weight.spec
        self.backend = backend
        for name in ("codes", "scales", "zeros", "sums", "groups", "order"):
            self.register_buffer(name, getattr(weight, name))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        # The rest of an Int4Weight while `codes` is in ATen's order.
        self._int4: tuple[torch.Tensor, int] | None = None
        self._may_int4 = True

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
        whose = self.spec.name or "QuantLinear"
        if x.device != self.codes.device:
            raise DeviceError(
                f"x is on {x.device}, weight of {whose} is on {self.codes.device}; "
                "move one with .to(...)."
            )
        check_input(x, self.in_features, name=self.spec.name)
        y = self._matmul(x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _matmul(self, x: torch.Tensor) -> torch.Tensor:
        if self.backend in ("numpy", "numexpr"):
            return self._by_arrays(x)
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

    def _by_arrays(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            raise DeviceError(
                f"{self.spec.name or 'QuantLinear'} is on {x.device}, and backend "
                f"{self.backend!r} computes on the CPU; choose backend='torch'."
            )
        self._use_tiles()
        y = array_matmul(self.backend)(x.detach().float().numpy(), torch_.to_arrays(self._weight()))
        return torch.from_numpy(y).to(x.dtype)

    def _weight(self) -> TiledWeight:
        return TiledWeight(
            self.spec, self.codes, self.scales, self.zeros, self.sums, self.groups, self.order
        )

    def _use_tiles(self) -> None:
        """Take the codes back from ATen's order, if they are in it."""
        if self._int4 is not None:
            int4 = int4pack.Int4Weight(self.codes, *self._int4)
            self.codes, self._int4 = int4pack.to_tiles(self._weight(), int4).codes, None

    def to_packed(self) -> PackedWeight:
        """Return the weight as a `PackedWeight`, equal to the one it was made from."""
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
        super()._load_from_state_dict(*args, **kwargs)
