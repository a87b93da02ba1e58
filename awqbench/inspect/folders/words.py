"""What the first packed word of a linear holds in each layout: found by trying, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.layouts.table import LAYOUTS, packed_parts, read_linear

if TYPE_CHECKING:
    import pandas as pd


def first_words(folders: Iterable[Checkpoint | str | Path], module: str) -> pd.DataFrame:
    """Show what the first word of one packed linear holds in each folder.

    Nothing here knows a layout's order: each field of the word is changed in turn, the
    linear is read again, and the code that changed is the field's.

    Parameters
    ----------
    folders : iterable of Checkpoint or str or Path
    module : str
        A packed linear of each.

    Returns
    -------
    DataFrame
        `layout`, `tensor` (name, dtype and shape), `word` (hexadecimal), and of its fields,
        the lowest bits first, `rows` and `columns` of the weight matrix (N, K) and `codes`;
        one number stands for all where they agree.

    Raises
    ------
    FormatError
        If a folder has no such packed linear.
    """
    import pandas as pd

    return pd.DataFrame([_first_word(open_checkpoint(folder), module) for folder in folders])


def _first_word(ckpt: Checkpoint, module: str) -> dict[str, Any]:
    if not ckpt.is_packed(module):
        raise FormatError(f"{ckpt.path.name} has no packed linear {module}.")
    layout = LAYOUTS[ckpt.quantization.layout]
    parts = {
        part: ckpt.read(f"{module}.{part}")
        for part in packed_parts(layout)
        if f"{module}.{part}" in ckpt.tensors
    }
    scheme = ckpt.quantization.scheme(module)
    known = {"bits": scheme.bits, "group_size": scheme.group_size, "name": module}
    codes = read_linear(layout, parts, **known).codes
    words = parts[layout.marker]
    places = []
    for field in range(8 * words.element_size() // scheme.bits):
        changed = words.clone()
        _flip(changed.numpy(), field * scheme.bits)
        after = read_linear(layout, parts | {layout.marker: changed}, **known).codes
        places += [tuple(place) for place in np.argwhere(after != codes).tolist()]
    value = int.from_bytes(words.numpy().ravel()[:1].tobytes(), "little")
    dtype = str(words.dtype).removeprefix("torch.")
    return {
        "layout": layout.name,
        "tensor": f"{layout.marker} {dtype} {tuple(words.shape)}",
        "word": f"0x{value:0{2 * words.element_size()}x}",
        "rows": _listed([row for row, _ in places]),
        "columns": _listed([column for _, column in places]),
        "codes": " ".join(str(codes[place]) for place in places),
    }


def _flip(words: np.ndarray, bit: int) -> None:
    """Flip one bit of the first word in place; checkpoints are little-endian."""
    stored = words.reshape(-1).view(np.uint8)
    stored[bit // 8] ^= np.uint8(1 << bit % 8)


def _listed(numbers: list[int]) -> str:
    return " ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))
