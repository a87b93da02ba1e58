"""A model folder: opened by its headers, read one tensor at a time.

Only safetensors are read: no file here can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import AlreadyQuantizedError, FormatError
from awqbench.formats.config.detect import detect_quantization
from awqbench.formats.config.fields import read_json
from awqbench.formats.config.foreign import foreign_by_files
from awqbench.formats.config.quantization import Quantization
from awqbench.formats.fused import split_experts
from awqbench.formats.headers import TensorInfo, shown
from awqbench.formats.layouts.table import (
    LAYOUTS,
    packed_modules,
    packed_parts,
    read_linear,
    require_declared,
)
from awqbench.formats.shards import read_tensors
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

# Files that go with the weights and are carried over to a folder made from this one.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_DENSE_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Bytes sampled of each tensor for the digest: enough to tell fine-tunes apart.
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, its weights still on disk.

    Parameters
    ----------
    path : Path
    config : dict
        What config.json holds.
    tensors : dict of str to TensorInfo
        Every tensor's shape, dtype and place; of experts that a file has fused, each matrix.
    """

    path: Path
    config: dict
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Returns
        -------
        torch.Tensor
            In memory of its own: the file is not kept open, and no second copy is made.

        Raises
        ------
        FormatError
            If there is no such tensor, or its file has changed since it was opened.
        """
        import torch

        info = self._info(name)
        dtype = getattr(torch, info.dtype, None)
        if dtype is None:
            raise FormatError(f"tensor {name}: this torch has no dtype {info.dtype}.")
        data = torch.empty(info.nbytes, dtype=torch.uint8)
        try:
            with info.file.open("rb") as file:
                file.seek(info.start)
                n_read = file.readinto(data.numpy())
        except OSError as error:
            raise FormatError(f"{info.file.name}: cannot be read ({error}).") from error
        if n_read < info.nbytes:
            raise FormatError(f"{info.file.name}: truncated since it was opened.")
        return data.view(dtype).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise FormatError(f"{self.path.name} has no tensor {name}.")
        return self.tensors[name]

    @cached_property
    def quantization(self) -> Quantization | None:
        """How the weights are quantized, or None."""
        return detect_quantization(self.config, self.tensors, self.path)

    def require_full_precision(self) -> None:
        """Raise if the folder holds quantized weights.

        Raises
        ------
        AlreadyQuantizedError
            Names the method and what can be done instead.
        """
        if self.quantization is not None:
            raise AlreadyQuantizedError(
                f"{self.path.name} is already quantized ({self.quantization.summary()}); "
                "quantizing again would add a second error on top of the first. "
                "Start from the original bf16 or fp16 folder, or use this one as it is "
                "with load_quantized()."
            )

    def linear(self, name: str) -> PackedWeight | torch.Tensor:
        """Read the weight of one linear, packed if it is quantized.

        Parameters
        ----------
        name : str
            Module path, such as ``model.layers.0.mlp.up_proj``.

        Returns
        -------
        PackedWeight or torch.Tensor
            Dense weights are (N, K).

        Raises
        ------
        FormatError
            If the module has neither a packed nor a dense weight, or a layout that
            awqbench cannot read.
        """
        if self.is_packed(name):
            return self._packed_linear(name)
        weight = self.tensors.get(f"{name}.weight")
        if weight is not None and weight.dtype in _DENSE_DTYPES:
            return self.read(f"{name}.weight")
        if self.quantization is not None:
            self.quantization.require_readable()
        if weight is not None:
            raise FormatError(f"tensor {name}.weight of {self.path.name} is {weight.dtype}.")
        raise FormatError(f"{self.path.name} has no linear {name}.")

    def _packed_linear(self, name: str) -> PackedWeight:
        layout = LAYOUTS[self.quantization.layout]
        scheme = self.quantization.scheme(name)
        present = [p for p in packed_parts(layout) if f"{name}.{p}" in self.tensors]
        try:
            require_declared(self.quantization, scheme, present, name=name)
            return read_linear(
                layout,
                {part: self.read(f"{name}.{part}") for part in present},
                bits=scheme.bits,
                group_size=scheme.group_size,
                name=name,
            )
        except FormatError as error:
            files = {self.tensors[f"{name}.{part}"].file.name for part in present}
            raise FormatError(f"{', '.join(sorted(files))}: {error}") from error

    def is_packed(self, name: str) -> bool:
        """Tell whether a module has packed weights that can be read."""
        return name in self._packed

    def quantized_linears(self) -> list[str]:
        """Return the module paths that have packed weights, in order of their names.

        Empty where the method is only recognised.
        """
        return list(self._packed)

    @cached_property
    def _packed(self) -> dict[str, None]:
        if self.quantization is None or self.quantization.layout is None:
            return {}
        return dict.fromkeys(packed_modules(LAYOUTS[self.quantization.layout], self.tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """Identity of the model: SHA-256 of config, headers and samples of every tensor.

        Reads at most 12 KiB a tensor, so a 70 B model takes a second. Whether weights lie
        in one file or many shards makes no difference.
        """
        digest = hashlib.sha256()
        config = {k: v for k, v in self.config.items() if k != "transformers_version"}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(f"{name} {info.dtype} {info.shape}".encode())
            with info.file.open("rb") as file:
                last = max(info.start, info.stop - _SAMPLE_BYTES)
                for at in sorted({info.start, (info.start + last) // 2, last}):
                    file.seek(at)
                    digest.update(file.read(min(_SAMPLE_BYTES, info.stop - at)))
        return digest.hexdigest()


def embedded_model() -> Path:
    """Return the folder of the embedded model, data/tiny-qwen3.

    Raises
    ------
    FormatError
        If awqbench runs from a wheel, which does not carry it.
    """
    path = Path(__file__).resolve().parents[2] / "data" / "tiny-qwen3"
    if not path.is_dir():
        raise FormatError(
            "the embedded model lies in data/tiny-qwen3 of the repository, and this is an "
            "installed wheel: clone the repository, or give the folder of a model."
        )
    return path


def open_checkpoint(source: str | Path | Checkpoint = "tiny") -> Checkpoint:
    """Open a model folder by its headers; no weight is read, no code is run.

    Parameters
    ----------
    source : str or Path
        A folder, a Hugging Face hub id, or ``"tiny"`` for the embedded model.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FormatError
        If there is no such folder, config.json or an index is damaged, a shard is missing
        or truncated, or the weights are pickles.
    """
    if isinstance(source, Checkpoint):
        return source
    path = embedded_model() if str(source) == "tiny" else Path(source).expanduser()
    found = foreign_by_files(path) if os.path.exists(path) else None
    if found is not None:
        raise FormatError(f"{path.name} is not a folder of safetensors: {found.advice}")
    if not os.path.isdir(path):  # Path.is_dir raises for a name too long
        path = _download(str(source))
    config = read_json(path / "config.json")
    tensors = split_experts(read_tensors(path), str(config.get("model_type", "")))
    return Checkpoint(path=path, config=config, tensors=tensors)


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(source, allow_patterns=["*.safetensors", "*.json", *SIDE_FILES])
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FormatError(
            f"{shown(source)} is neither a folder here nor a model that the hub could give "
            f"({type(error).__name__}). Give a folder with config.json and safetensors."
        ) from error
