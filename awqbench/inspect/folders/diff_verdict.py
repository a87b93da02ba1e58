"""One sentence about two folders: the same numbers, or how far apart and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint

# Columns that say whether two packed linears hold the same numbers.
SAME = ("same_codes", "same_scales", "same_zeros", "same_groups")


def verdict_of(
    folders: tuple[Checkpoint, Checkpoint],
    is_same: bool,
    linears: pd.DataFrame,
    tensors: pd.DataFrame,
    only: list[tuple[str, ...]],
    tensors_only: list[tuple[str, ...]],
) -> str:
    """Say in one sentence how two folders differ.

    Parameters
    ----------
    folders : tuple of Checkpoint
    is_same : bool
    linears, tensors : DataFrame
        As `FolderDiff` has them.
    only, tensors_only : list of tuple of str
        Modules that are packed, and dense tensors that are, in the first folder only, and
        in the second only.

    Returns
    -------
    str
    """
    layouts = [f.quantization.layout if f.quantization else "full precision" for f in folders]
    if is_same:
        where = f"the same layout ({layouts[0]})"
        if layouts[0] != layouts[1]:
            where = f"another layout ({layouts[0]}, {layouts[1]})"
        return f"the same numbers in {where}: {_counts(linears, tensors)}"
    if not len(linears) and not len(tensors):
        return (
            f"nothing in common: {counted(len(only[0]), 'packed module')} only in a, "
            f"{len(only[1])} only in b, and no tensor of one name; are they of one model?"
        )
    parts = [*_linear_parts(linears), *_tensor_parts(linears, tensors)]
    parts += [
        f"{counted(len(names), 'module')} packed in {side} only"
        for side, names in zip("ab", only, strict=True)
        if names and not (linears["packed_in"] == side).any()
    ]
    parts += [
        f"{counted(len(names), 'dense tensor')} in {side} only"
        for side, names in zip("ab", tensors_only, strict=True)
        if names
    ]
    return "; ".join(parts)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in the singular or plural."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _counts(linears: pd.DataFrame, tensors: pd.DataFrame) -> str:
    parts = [counted(len(tensors), "dense tensor")]
    if len(linears):
        parts.insert(0, f"codes, scales and zero points of {counted(len(linears), 'linear')}")
    return " and ".join(parts)


def _linear_parts(linears: pd.DataFrame) -> Iterator[str]:
    both = linears[linears["packed_in"] == "both"]
    other = both[~both[list(SAME)].all(axis=1).astype(bool)]
    if len(other):
        worst = _worst(other)
        yield (
            f"other numbers in {len(other)} of {counted(len(both), 'packed linear')}, most "
            f"{worst['name']} "
            f"({_codes(worst)}{_error(worst)})"
        )
    elif len(both):
        yield f"the same numbers in {counted(len(both), 'packed linear')}"
    for side, dense in (("a", "b"), ("b", "a")):
        rows = linears[linears["packed_in"] == side]
        if len(rows):
            worst = _worst(rows)
            middle = rows["relative_error"].median()
            yield (
                f"{counted(len(rows), 'linear')} packed in {side} and dense in {dense}: median "
                f"relative error {middle:.2g}, most {worst['name']} ({_error(worst)})"
            )


def _tensor_parts(linears: pd.DataFrame, tensors: pd.DataFrame) -> Iterator[str]:
    other = tensors[~tensors["equal"].astype(bool)]
    if len(other):
        worst = _worst(other)
        yield (
            f"other numbers in {len(other)} of {counted(len(tensors), 'dense tensor')}, most "
            f"{worst['name']} ({_error(worst)})"
        )
    if (linears["packed_in"] != "both").any() and other["name"].str.contains("norm").any():
        yield (
            "norms differ too, as where AWQ folded channel scales into them: weights are then "
            "scaled, and their errors here say nothing of the model's"
        )


def _worst(rows: pd.DataFrame) -> pd.Series:
    """Return the row that differs most; what cannot be compared comes first."""
    return rows.loc[rows["relative_error"].fillna(float("inf")).idxmax()]


def _codes(row: pd.Series) -> str:
    share = row["codes_differ"]  # NaN where the codes have other widths
    return f"{share:.2%} of its codes, " if share == share else ""


def _error(row: pd.Series) -> str:
    error = row["relative_error"]
    return (
        f"relative error {error:.2g}" if error == error else "not comparable: other shapes, or NaN"
    )
