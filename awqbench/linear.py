"""A quantized checkpoint as a transformers model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from awqbench.devices import usable_device
from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.layouts.table import LAYOUTS
from awqbench.gemm import require_backend
from awqbench.model_build import build_skeleton
from awqbench.model_chatglm import as_glm, is_chatglm
from awqbench.model_experts import name_in_model
from awqbench.model_weights import WeightReader
from awqbench.packed import PackedWeight
from awqbench.quant_linear import QuantLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["QuantLinear", "load_quantized"]

# Tensors of old files that today's models compute themselves.
_OBSOLETE = (r"rotary_emb\.inv_freq$", r"\.masked_bias$", r"attn\.bias$")
# transformers 4.56 renamed the key.
_DTYPE_KEYS = ("dtype", "torch_dtype")


def load_quantized(
    folder: str | Path | Checkpoint,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    dequantize: bool = False,
) -> PreTrainedModel:
    """Load a quantized checkpoint as a transformers model; no GPU or kernel package needed.

    Packed weights are multiplied as they are, (q - z) s, unrounded. The tools that made the
    folder decode first and round to the scales' dtype: logits differ by about 5e-3 in
    float16. `dequantize` gives their numbers exactly, with the memory of a dense model.

    The model's config holds no `quantization_config`: transformers would ask for the package
    it knows the method by. Remote code is never run. `save_pretrained` on the model writes
    awqbench's own tensors, which transformers cannot load: keep the folder.

    Parameters
    ----------
    folder : str, Path or Checkpoint
        As `open_checkpoint` takes it.
    backend : {"auto", "torch", "numpy", "numexpr"}
    device : str or torch.device
    dtype : torch.dtype or str, optional
        Of the activations and of what is not quantized. None is the config's dtype, but
        float32 for a float16 checkpoint on the CPU: every float16 number is a float32
        number, and CPUs are slow in float16. bfloat16 is the fastest on the CPU (about four
        times float32 in decoding) and rounds activations to 8 bits.
    dequantize : bool
        Decode every weight when it is loaded, into plain `torch.nn.Linear`s; `backend` then
        plays no part.

    Returns
    -------
    transformers.PreTrainedModel
        In eval mode, parameters without gradients.

    Raises
    ------
    FormatError
        If the folder is not quantized, in a layout that cannot be read, or its tensors do
        not fit the model: names those missing or left over.
    TraceError
        If transformers does not know the architecture without remote code.
    DeviceError
        If torch cannot compute on `device`.
    BackendError
        If `backend` is not available.
    """
    ckpt = open_checkpoint(folder)
    if ckpt.quantization is None:
        raise FormatError(
            f"{ckpt.path.name} is not quantized; load it with transformers: "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    ckpt.quantization.require_readable()
    ckpt = as_glm(ckpt) if is_chatglm(ckpt) else ckpt
    if backend != "auto":
        require_backend(backend)
    device = usable_device(device)
    dtype = _compute_dtype(ckpt, dtype, device)
    model = build_skeleton(ckpt, dtype=dtype)
    reader = WeightReader(ckpt, model, dtype=dtype, device=device)
    # Before the linears are replaced: a QuantLinear's buffers are not those of the file.
    reader.fill_buffers(model, "")
    packed = {name: _module_path(ckpt, model, name) for name in ckpt.quantized_linears()}
    for name, path in packed.items():
        packed_weight, bias = _read_checked(ckpt, model, name, path)
        if dequantize:
            linear = _decoded_linear(ckpt, packed_weight, bias, dtype)
        else:
            linear = QuantLinear(packed_weight, bias, backend=backend)
        model.set_submodule(path, linear.to(device))
    _scale_activations(ckpt, model, reader)
    names = [
        name for name, param in model.named_parameters(remove_duplicate=False) if param.is_meta
    ]
    reader.fill(model, "", names)
    _check_leftovers(ckpt, model, reader, packed)
    _finish(ckpt, model)
    return model


def _compute_dtype(
    ckpt: Checkpoint, dtype: torch.dtype | str | None, device: torch.device
) -> torch.dtype:
    if dtype is None:
        text = ckpt.config.get("text_config") or {}
        keys = [section.get(key) for section in (ckpt.config, text) for key in _DTYPE_KEYS]
        dtype = next(filter(None, keys), "float32")
        if device.type == "cpu" and dtype == "float16":
            dtype = "float32"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise FormatError(f"{ckpt.path.name}: dtype {dtype!r} is no floating-point dtype of torch.")
    return found


def _module_path(ckpt: Checkpoint, model: nn.Module, name: str) -> str:
    """Return the path in the model of a packed linear of the file."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules = dict(model.named_modules())
    ours = name_in_model(name)
    for path in (ours, prefix + ours, ours.removeprefix(prefix)):
        if isinstance(modules.get(path), nn.Linear):
            return path
    found = type(modules[name]).__name__ if name in modules else "nothing"
    raise FormatError(
        f"{ckpt.path.name} has a packed weight {name}, where {type(model).__name__} has {found} "
        "and not a Linear: the config and the weights belong to different models, or this "
        "architecture fuses its weights."
    )


def _read_checked(
    ckpt: Checkpoint, model: nn.Module, name: str, path: str
) -> tuple[PackedWeight, torch.Tensor | None]:
    """Read a packed weight and its bias, and hold them against the model's linear."""
    packed = ckpt.linear(name)
    linear = model.get_submodule(path)
    expected = (linear.out_features, linear.in_features)
    if packed.codes.shape != expected:
        raise FormatError(
            f"{name} of {ckpt.path.name} is {packed.codes.shape}, and by config.json {expected} "
            "(out_features, in_features): the two belong to different models."
        )
    bias = ckpt.read(f"{name}.bias") if f"{name}.bias" in ckpt.tensors else None
    if bias is None and linear.bias is not None:
        raise FormatError(f"{ckpt.path.name} has no tensor {name}.bias, which the model needs.")
    if bias is not None:
        bias = bias.to(model.dtype)
    return packed, bias


def _decoded_linear(
    ckpt: Checkpoint, packed: PackedWeight, bias: torch.Tensor | None, dtype: torch.dtype
) -> nn.Linear:
    weight = torch.from_numpy(packed.dequantize())
    if LAYOUTS[ckpt.quantization.layout].rounds_decoded:
        weight = weight.to(getattr(torch, packed.scale_dtype))
    linear = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


class ScaledActivation(nn.Module):
    """An activation whose output is divided by what AWQ multiplied the next linear by.

    Models whose activation is not gated have no norm or linear before the last linear of
    the MLP to fold into; AutoAWQ stores the divisor as ``<activation>.scales``.
    """

    def __init__(self, activation: nn.Module, scales: torch.Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation of x over the scales, (..., K)."""
        return self.activation(x) / self.scales.to(x.device, x.dtype)


def _scale_activations(ckpt: Checkpoint, model: nn.Module, reader: WeightReader) -> None:
    for path, module in list(model.named_modules()):
        stored = reader.stored_name(f"{path}.scales")
        if stored is None or isinstance(module, QuantLinear) or ckpt.is_packed(path):
            continue
        if any(True for _ in module.parameters()):
            continue  # not an activation: reported as left over
        model.set_submodule(path, ScaledActivation(module, ckpt.read(stored)))


def _check_leftovers(
    ckpt: Checkpoint, model: PreTrainedModel, reader: WeightReader, packed: dict[str, str]
) -> None:
    """Raise if the file holds tensors that no part of the model took."""
    named = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    named += [n for n, _ in model.named_buffers()]
    taken = {reader.stored_name(name) for name in named}
    ignored = [*_OBSOLETE, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    left = [
        name
        for name in ckpt.tensors
        if name not in taken
        and name.rpartition(".")[0] not in packed
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if left:
        raise FormatError(
            f"{ckpt.path.name} holds {len(left)} tensors that {type(model).__name__} has no place "
            f"for: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}."
        )


def _with_plain_strides(_head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple:
    """Give the last token's hidden state, a slice, the strides of a tensor of its own.

    torch 2.13 otherwise copies the whole bfloat16 weight of the head for a slice of one
    token: 370 ms for 50,000 x 1024 on two cores, against 16.
    """
    x, *rest = args
    return (x.clone(memory_format=torch.contiguous_format), *rest)


def _finish(ckpt: Checkpoint, model: PreTrainedModel) -> None:
    """Make config and generation settings those of a model that was loaded from the folder."""
    from transformers import GenerationConfig

    for key in ("quantization_config", "quantization_bit"):
        vars(model.config).pop(key, None)
    head = model.get_output_embeddings()
    if isinstance(head, QuantLinear):
        model.config.tie_word_embeddings = False
    elif head is not None:
        head.register_forward_pre_hook(_with_plain_strides)
    model.config._name_or_path = model.name_or_path = str(ckpt.path)
    if (ckpt.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(ckpt.path)
    model.eval().requires_grad_(False)
