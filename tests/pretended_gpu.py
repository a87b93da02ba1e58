"""A GPU where there is none: tensors that say they are on cuda:0 and refuse what CUDA refuses.

Inside `PretendedGpu` whatever is made or moved with ``device="cuda"`` is a `Pretended` tensor.
It computes for real, on the CPU, so that results have the CPU's last bits. Like a tensor of
CUDA it takes no part in a computation with CPU tensors (but those of no dimensions), gives its
numbers neither to NumPy nor through a pointer, and wants generators of its own device. It is
stricter than CUDA in two things that would be slow there: indices must be on the device too,
and what is assigned to a part of a tensor.

What it cannot see: last bits, speed and memory of real kernels, kernels that CUDA lacks for a
dtype (but products of integers), and what code does with tensors below Python's torch functions.
"""

import weakref

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Functions that take tensors of two devices: they copy.
_COPIES = {"copy_", "to", "cpu", "cuda", "as_tensor", "tensor", "set_default_device"}
# Products for which CUDA has no kernel of integers.
_PRODUCTS = {"matmul", "mm", "bmm", "mv", "addmm", "addmm_"}
_POINTERS = {"numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__"}


class Pretended(torch.Tensor):
    """A tensor without memory of its own; `inner` holds the numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CUDA
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a pretended tensor, outside of PretendedGpu")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} reached a pretended tensor below torch's functions")


class PretendedGpu(TorchFunctionMode):
    """Let ``"cuda"`` be a device; a context.

    Attributes
    ----------
    used : set of str
        Names of the functions that computed there.
    bytes, peak_bytes : int
        Of all tensors there, now and at most.
    """

    def __init__(self):
        super().__init__()
        self.used, self.bytes, self.peak_bytes = set(), 0, 0
        self._alive = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = _name_of(func)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        here = [t for t in tensors if isinstance(t, Pretended)]
        if here and name == "device":
            return CUDA
        if here and name in ("is_cuda", "is_cpu"):
            return name == "is_cuda"
        target, on_cpu, changed = _target(name, args, kwargs)
        target = target or (CUDA if here else CPU)
        if not here and target.type != "cuda":
            return func(*args, **kwargs)
        args, kwargs = on_cpu, changed
        self._check(name, tensors, here, kwargs.get("generator"), target)
        self.used.add(name)
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if isinstance(result, np.ndarray):
            raise TypeError(f"{name}: can't convert {CUDA} device type tensor to numpy")
        known = {id(t.inner): t for t in here}
        if target.type != "cuda":
            return tree_map(lambda t: t.clone() if id(t) in known else t, result)
        return tree_map(lambda t: self._wrapped(t, known, name, tensors), result)

    def _check(self, name, tensors, here, generator, target):
        if name in _POINTERS:
            raise TypeError(f"can't convert {CUDA} device type tensor to numpy ({name})")
        if generator is not None and generator.device.type != target.type:
            raise RuntimeError(f"{name}: Expected a {target} generator, not {generator.device}")
        strangers = [t for t in tensors if not isinstance(t, Pretended)]
        if here and name not in _COPIES:
            wrong = [t for t in strangers if t.dim() or name in ("cat", "stack")]
            if wrong:
                shapes = [tuple(t.shape) for t in wrong]
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device, but found {CUDA} "
                    f"and cpu {shapes}"
                )
        if name in _PRODUCTS and any(not t.is_floating_point() for t in map(_inner, here)):
            raise NotImplementedError(f'"{name}_cuda" not implemented for integers')

    def _wrapped(self, value, known, name, tensors):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:  # computed in place
            return known[id(value)]
        if any(value is t for t in tensors):  # moved: another memory than the CPU's
            value = value.clone()
        self._count(value)
        return Pretended(value)

    def _count(self, value):
        """Count a memory once, however many tensors look into it, until it is given back."""
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.bytes -= self._alive.pop(key)


def _name_of(func):
    """Return a function's name; of the getter of a property, the property's."""
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


def _inner(value):
    return value.inner if isinstance(value, Pretended) else value


def _target(name, args, kwargs):
    """Return where a function's result is sent, or None, and its arguments for the CPU."""
    if name in ("cpu", "cuda"):
        return (CPU if name == "cpu" else CUDA), args, kwargs
    if name == "to":
        for i, value in enumerate(args[1:], start=1):
            if isinstance(value, torch.Tensor):
                return value.device, (args[0], value.dtype), kwargs
            if isinstance(value, str | torch.device):
                return torch.device(value), (*args[:i], CPU, *args[i + 1 :]), kwargs
    target = kwargs.get("device")
    if target is None:
        return None, args, kwargs
    return torch.device(target), args, kwargs | {"device": CPU}
