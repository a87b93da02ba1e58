"""y = x Wᵀ for a packed W, by whichever compute path the caller or the input chooses."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, BackendError, DeviceError, ParameterError
from awqbench.gemm.layout import cached_form, tile_weight
from awqbench.packed import PackedWeight
from awqbench.rooms import make_callable

if TYPE_CHECKING:
    import torch

BACKENDS = ("numpy", "numexpr", "torch", "native", "cuda")


def gemm(
    x: np.ndarray | torch.Tensor,
    packed: PackedWeight,
    backend: str = "auto",
    *,
    activations: str | None = None,
) -> np.ndarray | torch.Tensor:
    """Multiply tokens by a packed weight, y = x Wᵀ.

    A row of x that holds NaN or infinity gives the row of y that IEEE arithmetic gives it,
    and no other row is touched.

    Parameters
    ----------
    x : (..., K) ndarray or torch.Tensor, floating point
        Any strides; no tokens and a single token without a leading dimension are fine.
    packed : PackedWeight
        (N, K). A repacked form of it is kept for as long as it lives.
    backend : {"auto", "numpy", "numexpr", "torch", "native", "cuda"}
        "auto" is native on the CPU where it can be built (at the first call, in seconds), and
        cuda for float16 and bfloat16 tokens on a GPU; else, and where a gradient is wanted,
        NumPy for an array and torch for a tensor.
    activations : {"int16", "float32", "int8"}, optional
        What the native backend makes of x, per token and group: relative Frobenius errors of
        at most about 1e-4, 1e-6 and 1e-2. Default "int16" where x is float16 or bfloat16 or
        `backend` is "native", and "float32" else.

    Returns
    -------
    (..., N) ndarray or torch.Tensor
        What x is, of its dtype and on its device. Computed in float32, but for many tokens
        in a tensor, which torch computes in its dtype.

    Raises
    ------
    AlignmentError
        If the last dimension of x is not K; or if `backend` is "cuda" and the weight's groups
        are not whole rows, nor of a multiple of 32.
    ParameterError
        If x is not floating point, `backend` is no backend, or `activations` are given to
        another backend than native; or if `backend` is "cuda" and x float32 or float64.
    BackendError
        If `backend` is not available; gives the reason.
    DeviceError
        If x lies on an accelerator that the backend cannot reach, or on the CPU and `backend`
        is "cuda".

    Examples
    --------
    >>> from awqbench.packed import quantize_weight
    >>> gemm(np.ones((1, 8), np.float32), quantize_weight(np.eye(4, 8), group_size=8)).shape
    (1, 4)
    """
    is_tensor = _is_tensor(x)
    if not is_tensor:
        x = np.asarray(x)
    check_input(x, packed.in_features, name=packed.name)
    chosen = choose_backend(x, backend, activations)
    flat = x.reshape(-1, packed.in_features)
    if chosen == "native":
        y = _by_native(flat, packed, activations, is_named=backend == "native")
    elif chosen == "cuda":
        y = _by_cuda(flat, packed, is_named=backend == "cuda")
    elif chosen == "torch":
        y = _by_torch(flat, packed)
    else:
        y = _by_arrays(flat, packed, chosen)
    return y.reshape(*x.shape[:-1], packed.out_features)


def choose_backend(
    x: np.ndarray | torch.Tensor, backend: str, activations: str | None = None
) -> str:
    """Return the backend for x, checked: `backend` itself, but for "auto".

    Raises
    ------
    ParameterError, BackendError
        As `gemm`.
    """
    from awqbench.gemm import native

    if activations is not None:
        if backend not in ("auto", "native"):
            raise ParameterError(
                f"activations={activations!r} is a choice of backend 'native', and "
                f"{backend!r} computes in float32; leave it out."
            )
        backend = "native"
    if backend != "auto":
        require_backend(backend)
        return backend
    is_tensor = _is_tensor(x)
    if (not is_tensor or native.takes(x)) and native.is_usable():
        return "native"
    if is_tensor and x.is_cuda and _takes_cuda(x):
        return "cuda"
    return "torch" if is_tensor else "numpy"


def _takes_cuda(x: torch.Tensor) -> bool:
    from awqbench.gemm import cuda

    return not cuda.why_absent() and cuda.takes(x)


def _by_cuda(x: np.ndarray | torch.Tensor, packed: PackedWeight, *, is_named: bool) -> torch.Tensor:
    from awqbench.gemm import cuda, cuda_layout

    if not _is_tensor(x):
        raise DeviceError(
            "x is an ndarray, in the CPU's memory, and backend 'cuda' computes on a GPU; pass a "
            "tensor there, torch.from_numpy(x).half().cuda(), or choose backend='native'."
        )
    cuda.check_tokens(x)
    if not is_named and cuda_layout.why_not(packed):
        return _by_torch(x, packed)
    weight = cached_form(
        packed, ("cuda", str(x.device)), lambda source: cuda.to_device(source, x.device)
    )
    return cuda.matmul(x, weight)


def _by_native(
    x: np.ndarray | torch.Tensor, packed: PackedWeight, activations: str | None, *, is_named: bool
) -> np.ndarray | torch.Tensor:
    from awqbench.gemm import native
    from awqbench.gemm.native_layout import stream_weight

    if _is_tensor(x):
        check_on_cpu(x, "native")
    native.library()
    dtype = str(x.dtype).removeprefix("torch.")
    activations = native.choose_activations(activations, dtype, is_named=is_named)
    weight = cached_form(packed, "native", stream_weight)
    return native.matmul_any(x, weight, activations=activations)


def check_on_cpu(x: torch.Tensor, backend: str) -> None:
    """Raise `DeviceError` if x lies on an accelerator and `backend` computes on the CPU."""
    if x.device.type != "cpu":
        raise DeviceError(
            f"x is on {x.device}, and backend {backend!r} computes on the CPU; "
            "move x with .cpu(), or choose backend='torch'."
        )


def _by_torch(x: np.ndarray | torch.Tensor, packed: PackedWeight) -> np.ndarray | torch.Tensor:
    from awqbench.gemm import torch_

    if _is_tensor(x):
        return torch_.matmul_packed(x, packed)
    import torch

    # A copy: torch takes no negative strides, and warns of arrays that are read-only.
    y = torch_.matmul_packed(torch.from_numpy(np.array(x, np.float32)), packed)
    return _cast(y.numpy(), x.dtype)


def _by_arrays(
    x: np.ndarray | torch.Tensor, packed: PackedWeight, backend: str
) -> np.ndarray | torch.Tensor:
    weight = cached_form(packed, "tiles", tile_weight)
    if not _is_tensor(x):
        return _cast(array_matmul(backend)(_cast(x, np.float32), weight), x.dtype)
    import torch

    check_on_cpu(x, backend)
    y = array_matmul(backend)(x.detach().float().numpy(), weight)
    return torch.from_numpy(y).to(x.dtype)


def array_matmul(backend: str):
    """Return the function of a backend that computes on ndarrays, "numpy" or "numexpr"."""
    if backend == "numexpr":
        from awqbench.gemm import numexpr_

        return numexpr_.matmul
    from awqbench.gemm import numpy_

    return numpy_.matmul


def _cast(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    # Overflow becomes infinity without a warning, as in torch: the caller chose the dtype.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype, copy=False)


def _is_tensor(x: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def check_input(x: np.ndarray | torch.Tensor, in_features: int, *, name: str = "") -> None:
    """Check that x is floating point and ends in K.

    Raises
    ------
    ParameterError
        If x has another dtype, or no dimension.
    AlignmentError
        If its last dimension is not K.
    """
    whose = name or "the weight"
    is_float = x.is_floating_point() if _is_tensor(x) else x.dtype.kind == "f"
    if not is_float:
        raise ParameterError(f"x is {x.dtype}; {whose} takes floating point, such as float32.")
    if x.ndim == 0:
        raise ParameterError(f"x has no dimension; {whose} takes (..., {in_features}).")
    if x.shape[-1] != in_features:
        raise AlignmentError(
            f"x has shape {tuple(x.shape)}, and {whose} takes in_features {in_features} last, "
            f"not {x.shape[-1]}."
        )


def available_backends() -> dict[str, str]:
    """Say of each backend why it is absent, or "" if it can be used.

    Nothing is compiled, and no device is woken: a compiler is found, but might fail.

    Examples
    --------
    >>> available_backends()["numpy"]
    ''
    """
    return {backend: _why_absent(backend) for backend in BACKENDS}


def _why_absent(backend: str) -> str:
    if backend in ("numexpr", "torch") and find_spec(backend) is None:
        return f"{backend} is not installed; pip install {backend}."
    if backend == "native":
        from awqbench.gemm import native

        return native.why_absent()
    if backend == "cuda":
        from awqbench.gemm import cuda

        return cuda.why_absent()
    return ""


def require_backend(backend: str) -> None:
    """Raise if a backend cannot be used.

    Raises
    ------
    ParameterError
        If there is none of that name.
    BackendError
        If it is not available; gives the reason and what is.
    """
    if backend not in BACKENDS:
        raise ParameterError(f"no backend {backend!r}; choose auto, {', '.join(BACKENDS)}.")
    # Looked up alone, for this runs at every call of gemm.
    reason = _why_absent(backend)
    if reason:
        usable = ", ".join(name for name, why in available_backends().items() if not why)
        raise BackendError(f"backend {backend!r} is not available: {reason} Available: {usable}.")


make_callable(__name__, __name__, "gemm")
