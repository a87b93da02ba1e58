"""What a block's tensors are called in the written folder: as in the folder that was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def as_stored(
    tensors: Mapping[str, Value], stored_names: Mapping[str, str], prefix: str
) -> dict[str, Value]:
    """Rename a block's tensors where its folder has other names than the model.

    Mixtral's experts are w1, w2 and w3 of block_sparse_moe in files, and engines look for
    their packed tensors under the same.

    Parameters
    ----------
    tensors : mapping of str to tensor
        By path in the model's block, packed ones too.
    stored_names : mapping of str to str
        Name in the folder of each of the block's parameters.
    prefix : str
        What the folder calls the block.

    Returns
    -------
    dict of str to tensor
        By path in the folder's block.

    Examples
    --------
    >>> names = {"mlp.experts.0.up_proj.weight": "layers.1.moe.experts.0.w3.weight"}
    >>> as_stored({"mlp.experts.0.up_proj.qweight": 5}, names, "layers.1")
    {'moe.experts.0.w3.qweight': 5}
    """
    found = {}
    for path, tensor in tensors.items():
        module, _, part = path.rpartition(".")
        stored = stored_names.get(path) or stored_names.get(f"{module}.weight")
        if stored is None or not stored.startswith(f"{prefix}."):
            found[path] = tensor
        else:
            inside = stored.removeprefix(f"{prefix}.").rpartition(".")[0]
            found[f"{inside}.{part}"] = tensor
    return found
