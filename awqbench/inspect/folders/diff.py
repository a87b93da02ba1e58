"""Two model folders beside each other, number by number, in whatever layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.layouts.table import LAYOUTS, packed_parts
from awqbench.inspect.folders.diff_verdict import SAME, verdict_of
from awqbench.inspect.folders.weight_difference import distance, linear_difference
from awqbench.packed import as_array
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

_LINEAR_COLUMNS = {
    "name": "object",
    "packed_in": "object",
    **dict.fromkeys(SAME, "boolean"),
    "codes_differ": "float64",
    "largest_difference": "float64",
    "relative_error": "float64",
}
_TENSOR_COLUMNS = {
    "name": "object",
    "dtype_a": "object",
    "dtype_b": "object",
    "equal": "boolean",
    "largest_difference": "float64",
    "relative_error": "float64",
}
# Who wrote a config.json, and where to, says nothing about the model.
_NOT_COMPARED = ("transformers_version", "_name_or_path")
_MAX_VALUE_CHARACTERS = 80
_MAX_CONFIG_LINES = 8


@dataclass(frozen=True, eq=False, repr=False)
class FolderDiff:
    """What `diff` found.

    Parameters
    ----------
    a, b : str
        Name and kind of each folder.
    verdict : str
        One sentence.
    is_same : bool
        Whether all linears and dense tensors hold the same numbers, in whatever layout.
    config : DataFrame
        `key` (dotted), `a`, `b`: entries of config.json that differ, as JSON; missing where
        one has no such key.
    only_a, only_b : tuple of str
        Modules that are packed in one folder only, whether or not the other has them dense.
    linears : DataFrame
        A row for each linear that both have and at least one has packed: `packed_in` ("a",
        "b" or "both"), `same_codes`, `same_scales`, `same_zeros`, `same_groups`,
        `codes_differ` (share), `largest_difference` and `relative_error` of the decoded
        weights (Frobenius norm, over a's).
    tensors : DataFrame
        A row for each tensor that is dense in both: `dtype_a`, `dtype_b`, `equal`,
        `largest_difference`, `relative_error`.
    tensors_only_a, tensors_only_b : tuple of str
        Dense tensors that the other folder has not, packed or dense.
    """

    a: str
    b: str
    verdict: str
    is_same: bool
    config: pd.DataFrame
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    linears: pd.DataFrame
    tensors: pd.DataFrame
    tensors_only_a: tuple[str, ...]
    tensors_only_b: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: json.loads(v.to_json(orient="records")) if hasattr(v, "to_json") else v
            for name, v in values.items()
        }

    def _lines(self) -> Iterator[str]:
        for side in ("a", "b"):
            for names, nouns in (
                (getattr(self, f"only_{side}"), ("module packed", "modules packed")),
                (getattr(self, f"tensors_only_{side}"), ("tensor", "tensors")),
            ):
                if names:
                    more = ", ..." if len(names) > 3 else ""
                    what = f"{len(names)} {nouns[len(names) > 1]}"
                    yield f"{what} only in {side}: {', '.join(names[:3])}{more}"
        changed = self.config.dropna()
        for row in changed.head(_MAX_CONFIG_LINES).itertuples():
            yield f"config {row.key}: {row.a} | {row.b}"
        rest = len(self.config) - min(len(changed), _MAX_CONFIG_LINES)
        if rest:
            yield f"{rest} more keys of config.json differ or are in one folder only (.config)"

    def __str__(self) -> str:
        """Write the verdict and what differs in a few lines."""
        return "\n".join([f"a: {self.a}", f"b: {self.b}", self.verdict, *self._lines()])

    def __repr__(self) -> str:
        """Show what `print` shows: tables of thousands of rows have no place in a prompt."""
        return str(self)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in self._lines())
        return (
            f"<p>a: {escape(self.a)}<br>b: {escape(self.b)}</p>"
            f"<p><b>{escape(self.verdict)}</b></p><ul>{items}</ul>"
        )


def diff(a: Checkpoint | str | Path, b: Checkpoint | str | Path) -> FolderDiff:
    """Compare two folders number by number, across layouts, one linear at a time.

    A packed linear is compared with a dense one by its decoded weight: that of AWQ is
    scaled by channel, so that it is far from the original where scales were folded.

    Parameters
    ----------
    a, b : Checkpoint or str or Path
        Quantized or full-precision folders.

    Returns
    -------
    FolderDiff

    Raises
    ------
    FormatError
        If a folder or a linear cannot be read, or its method is only recognised.
    """
    a, b = open_checkpoint(a), open_checkpoint(b)
    for ckpt in (a, b):
        if ckpt.quantization is not None:
            ckpt.quantization.require_readable()
    packed = [dict.fromkeys(ckpt.quantized_linears()) for ckpt in (a, b)]
    dense = [_dense_names(ckpt) for ckpt in (a, b)]
    linears = _linear_table(
        a, b, [*packed[0], *(name for name in packed[1] if name not in packed[0])]
    )
    tensors = _tensor_table(a, b, [name for name in dense[0] if name in dense[1]])
    only = [tuple(name for name in packed[i] if name not in packed[1 - i]) for i in (0, 1)]
    tensors_only = [
        tuple(
            name
            for name in dense[i]
            if name not in dense[1 - i] and name.removesuffix(".weight") not in packed[1 - i]
        )
        for i in (0, 1)
    ]
    numbers_same = bool(linears[list(SAME)].fillna(False).all(axis=None) and tensors["equal"].all())
    is_same = numbers_same and not any(only) and not any(tensors_only)
    return FolderDiff(
        a=_kind(a),
        b=_kind(b),
        verdict=verdict_of((a, b), is_same, linears, tensors, only, tensors_only),
        is_same=is_same,
        config=_config_table(a.config, b.config),
        only_a=only[0],
        only_b=only[1],
        linears=linears,
        tensors=tensors,
        tensors_only_a=tensors_only[0],
        tensors_only_b=tensors_only[1],
    )


def _kind(ckpt: Checkpoint) -> str:
    what = ckpt.quantization.summary() if ckpt.quantization else "full precision"
    return f"{ckpt.path.name} ({what})"


def _dense_names(ckpt: Checkpoint) -> dict[str, None]:
    if not ckpt.quantized_linears():
        return dict.fromkeys(ckpt.tensors)
    layout = LAYOUTS[ckpt.quantization.layout]
    parts = {f"{m}.{part}" for m in ckpt.quantized_linears() for part in packed_parts(layout)}
    return dict.fromkeys(name for name in ckpt.tensors if name not in parts)


def _linear_table(a: Checkpoint, b: Checkpoint, names: list[str]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name in progress_bar(names, "diff", unit="linear"):
        if not all(ckpt.is_packed(name) or f"{name}.weight" in ckpt.tensors for ckpt in (a, b)):
            continue
        packed_in = {(True, True): "both", (True, False): "a", (False, True): "b"}
        place = packed_in[a.is_packed(name), b.is_packed(name)]
        rows.append(
            {"name": name, "packed_in": place} | linear_difference(a.linear(name), b.linear(name))
        )
    return pd.DataFrame(rows, columns=list(_LINEAR_COLUMNS)).astype(_LINEAR_COLUMNS)


def _tensor_table(a: Checkpoint, b: Checkpoint, names: list[str]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name in progress_bar(names, "diff", unit="tensor"):
        first, second = as_array(a.read(name)), as_array(b.read(name))
        found = distance(first, second)
        rows.append(
            {
                "name": name,
                "dtype_a": a.tensors[name].dtype,
                "dtype_b": b.tensors[name].dtype,
                "equal": _equal(first, second),
                "largest_difference": found.largest,
                "relative_error": found.relative_error,
            }
        )
    return pd.DataFrame(rows, columns=list(_TENSOR_COLUMNS)).astype(_TENSOR_COLUMNS)


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    is_float = first.dtype.kind == second.dtype.kind == "f"
    return np.array_equal(first, second, equal_nan=is_float)


def _config_table(a: dict, b: dict) -> pd.DataFrame:
    import pandas as pd

    first, second = dict(_flat(a)), dict(_flat(b))
    keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    rows = [(key, first.get(key), second.get(key)) for key in keys if key not in _NOT_COMPARED]
    return pd.DataFrame(rows, columns=["key", "a", "b"])


def _flat(config: dict, above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        key = json.dumps(key)[1:-1]  # a stranger's key may hold terminal codes
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            text = json.dumps(value)
            is_long = len(text) > _MAX_VALUE_CHARACTERS
            yield f"{above}{key}", f"{text[:_MAX_VALUE_CHARACTERS]}..." if is_long else text
