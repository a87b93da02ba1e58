"""Experts that a file holds in two tensors of three dimensions, seen as a matrix each.

transformers 5 keeps all experts of a layer in ``experts.gate_up_proj`` (E, 2 I, H) and
``experts.down_proj`` (E, H, I), and can save them so; every engine and quantizer of weights
names a matrix for each. An expert's part of either lies in one piece, so a place in the file is
all that a matrix needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from awqbench.formats.headers import DTYPES, TensorInfo

_BYTES = {dtype: nbytes for nbytes, dtype in DTYPES.values()}
_DENSE = ("float16", "bfloat16", "float32", "float64")
_GATE_UP, _DOWN = ".experts.gate_up_proj", ".experts.down_proj"
# Names of gate, up and down, and of the module around the experts, where the files that
# engines read do not have the model's own: by config.json's model_type.
_NAMES = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL = ("block_sparse_moe", ("w1", "w3", "w2"))
_OTHER_NAMES = {"mixtral": _MIXTRAL, "minimax": _MIXTRAL, "minimax_m2": _MIXTRAL}


def split_experts(tensors: Mapping[str, TensorInfo], model_type: str = "") -> dict[str, TensorInfo]:
    """Return tensors with fused experts replaced by one for each matrix.

    Parameters
    ----------
    tensors : mapping of str to TensorInfo
    model_type : str
        Of config.json; Mixtral's matrices get the names that Mixtral's files have.

    Returns
    -------
    dict of str to TensorInfo
        In the same order. Tensors of other shapes (transposed experts, or with biases) and of
        packed dtypes stay as they are.

    Examples
    --------
    >>> from pathlib import Path
    >>> fused = {
    ...     name: TensorInfo(name, shape, "float32", Path("f"), 0, 4 * 48)
    ...     for name, shape in (
    ...         ("mlp.experts.gate_up_proj", (2, 6, 4)),
    ...         ("mlp.experts.down_proj", (2, 4, 3)),
    ...     )
    ... }
    >>> for name, info in list(split_experts(fused).items())[:2]:
    ...     print(name, info.shape, info.start, info.stop)
    mlp.experts.0.gate_proj.weight (3, 4) 0 48
    mlp.experts.0.up_proj.weight (3, 4) 48 96
    """
    fused = [name.removesuffix(_GATE_UP) for name in tensors if name.endswith(_GATE_UP)]
    layers = {layer for layer in fused if _is_dense(tensors, layer)}
    module, matrices = _OTHER_NAMES.get(model_type, ("", _NAMES))
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        layer = next((head for head in _heads(name) if head in layers), None)
        if layer is None:
            found[name] = info
            continue
        home = f"{layer.rpartition('.')[0]}.{module}" if module else layer
        if name == layer + _GATE_UP:
            parts = _slices(info, 2, f"{home}.experts", matrices[:2])
        elif name == layer + _DOWN:
            parts = _slices(info, 1, f"{home}.experts", matrices[2:])
        else:  # the router beside them
            moved = home + name.removeprefix(layer)
            parts = {moved: info._replace(name=moved)}
        found |= parts
    return found


def _heads(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]


def _is_dense(tensors: Mapping[str, TensorInfo], layer: str) -> bool:
    """Tell whether a layer's experts are two dense tensors that fit each other."""
    gate_up, down = tensors[layer + _GATE_UP], tensors.get(layer + _DOWN)
    biased = f"{layer}{_GATE_UP}_bias" in tensors
    if down is None or biased or not {gate_up.dtype, down.dtype} <= set(_DENSE):
        return False
    if len(gate_up.shape) != 3 or len(down.shape) != 3:
        return False
    count, hidden, inner = down.shape
    return gate_up.shape == (count, 2 * inner, hidden)


def _slices(
    info: TensorInfo, n_parts: int, home: str, names: tuple[str, ...]
) -> dict[str, TensorInfo]:
    count, rows, columns = info.shape
    shape = (rows // n_parts, columns)
    nbytes = shape[0] * shape[1] * _BYTES[info.dtype]
    found = {}
    for k in range(count * n_parts):
        name = f"{home}.{k // n_parts}.{names[k % n_parts]}.weight"
        start = info.start + k * nbytes
        found[name] = TensorInfo(name, shape, info.dtype, info.file, start, start + nbytes)
    return found
