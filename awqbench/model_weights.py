"""Reading a checkpoint's tensors into modules that were built without memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from awqbench.errors import FormatError, TraceError

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint


def stored_dtype(ckpt: Checkpoint) -> torch.dtype:
    """Return the floating-point dtype that most of a checkpoint's bytes have.

    Raises
    ------
    FormatError
        If the checkpoint holds no floating-point tensor.
    """
    import torch

    count: Counter[torch.dtype] = Counter()
    for info in ckpt.tensors.values():
        dtype = getattr(torch, info.dtype, None)
        if dtype is not None and dtype.is_floating_point:
            count[dtype] += info.nbytes
    if not count:
        raise FormatError(f"{ckpt.path.name} holds no floating-point tensor.")
    return count.most_common(1)[0][0]


def renamed_tensors(ckpt: Checkpoint, model: torch.nn.Module) -> dict[str, str]:
    """Map names in the model to names in the checkpoint where transformers changed them.

    GPT-NeoX files, for one, have ``embed_out.weight`` where transformers 5 has lm_head.
    """
    from awqbench.model_experts import name_in_model

    changes = _renamings(model)
    names = {}
    for stored in ckpt.tensors:
        name = name_in_model(stored)
        for change in changes:
            name = change.rename_source_key(name)[0]
        if name != stored:
            names[name] = stored
    return names


def _renamings(model: torch.nn.Module) -> list:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
        from transformers.modeling_utils import PreTrainedModel
    except ImportError:  # transformers 4 names tensors as the files do
        return []
    if not isinstance(model, PreTrainedModel):
        return []
    changes = get_model_conversion_mapping(model, add_legacy=False)
    return [change for change in changes if isinstance(change, WeightRenaming)]


class WeightReader:
    """Fills modules from a checkpoint, by name.

    Parameters
    ----------
    ckpt : Checkpoint
    model : torch.nn.Module
        The whole skeleton, for its class name and the prefix of its body.
    dtype : torch.dtype
        Of parameters; buffers keep theirs.
    device : torch.device
    """

    def __init__(
        self,
        ckpt: Checkpoint,
        model: torch.nn.Module,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.ckpt = ckpt
        self.dtype = dtype
        self.device = device
        self._architecture = type(model).__name__
        self._renamed = renamed_tensors(ckpt, model)
        self._body_prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def fill(self, module: torch.nn.Module, prefix: str, names: list[str]) -> None:
        """Replace parameters by what the checkpoint holds; tied ones stay tied.

        Parameters
        ----------
        module : torch.nn.Module
        prefix : str
            The module's own path in the model; "" is the model.
        names : list of str
            Parameters of `module`, relative to it.

        Raises
        ------
        FormatError
            If a tensor is missing or has another shape.
        """
        from torch import nn

        aliases: dict[int, list[str]] = {}
        for name in names:
            aliases.setdefault(id(module.get_parameter(name)), []).append(name)
        for group in aliases.values():
            shape = tuple(module.get_parameter(group[0]).shape)
            value = nn.Parameter(
                self._read([_join(prefix, name) for name in group], shape), requires_grad=False
            )
            for name in group:
                owner, _, leaf = name.rpartition(".")
                module.get_submodule(owner)._parameters[leaf] = value

    def fill_buffers(
        self, module: torch.nn.Module, prefix: str, *, skip: str | None = None
    ) -> None:
        """Read the buffers that the checkpoint holds; the others were computed when built.

        Parameters
        ----------
        module : torch.nn.Module
        prefix : str
        skip : str, optional
            Submodule to leave alone.

        Raises
        ------
        TraceError
            If a buffer has no value from either.
        """
        for path, owner in module.named_modules():
            if skip is not None and f"{path}.".startswith(f"{skip}."):
                continue
            for leaf, buffer in owner._buffers.items():
                if buffer is None:
                    continue
                full = _join(prefix, _join(path, leaf))
                stored = self.stored_name(full)
                if stored is not None and leaf not in owner._non_persistent_buffers_set:
                    buffer = self.ckpt.read(stored).to(buffer.dtype)
                elif buffer.is_meta:
                    raise TraceError(
                        f"buffer {full} of {self._architecture} is neither in the checkpoint "
                        "nor computed by the model: its value is not known."
                    )
                owner._buffers[leaf] = buffer.to(self.device)

    def stored_name(self, name: str) -> str | None:
        """Return the checkpoint's name of a tensor of the model, or None.

        Some folders hold the body without its prefix, and some names were changed in
        transformers after files had been written.
        """
        for candidate in (name, name.removeprefix(self._body_prefix), self._body_prefix + name):
            candidate = self._renamed.get(candidate, candidate)
            if candidate in self.ckpt.tensors:
                return candidate
        return None

    def _read(self, names: list[str], shape: tuple[int, ...]) -> torch.Tensor:
        """Read the first of tied `names` that is stored."""
        stored = next(filter(None, map(self.stored_name, names)), None)
        if stored is None:
            # transformers 5 holds all experts in one tensor; files hold one for each.
            hint = ": fused expert weights cannot be read yet." if len(shape) > 2 else "."
            raise FormatError(
                f"{self.ckpt.path.name} has no tensor {names[0]}, of shape {list(shape)}, which "
                f"{self._architecture} as config.json describes it needs{hint}"
            )
        found = tuple(self.ckpt.tensors[stored].shape)
        if found != shape:
            raise FormatError(
                f"tensor {stored} of {self.ckpt.path.name} has shape {list(found)}, and by "
                f"config.json it is {list(shape)}: the two belong to different models."
            )
        return self.ckpt.read(stored).to(self.device, self.dtype)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
