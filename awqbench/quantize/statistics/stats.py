"""Calibration statistics as an artifact on disk: saved, loaded, merged, checked.

A folder with one safetensors file for each block and a manifest that says which model and
which text they are of. It is all that a search needs beside the weights.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import OutputError, StatisticsError
from awqbench.quantize.durable import put_in_place, writing
from awqbench.quantize.folds.find import Site
from awqbench.quantize.statistics.moments import SiteMoments, merge_tensor

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint

FORMAT = "awqbench-statistics-1"
MANIFEST = "manifest.json"
# Facts that two sets of statistics must share to be added up.
_SAME_TO_MERGE = ("format", "model_digest", "n_blocks", "prefix", "dtype", "seq_len", "sketch_rows")


class SiteRecord(NamedTuple):
    """A site of one block: its linears and fold, and the moments of its input."""

    site: Site
    moments: SiteMoments


@dataclass(frozen=True)
class Stats:
    """Statistics of a model on a calibration text, still on disk.

    Parameters
    ----------
    path : Path
    manifest : dict
        `model_digest`, `calibration_digest`, `n_samples`, `seq_len`, `dtype`, `n_blocks`,
        `prefix`, `sketch_rows`, and `in_features` of every linear.
    """

    path: Path
    manifest: dict

    @property
    def n_blocks(self) -> int:
        """Blocks of the model."""
        return self.manifest["n_blocks"]

    @property
    def n_tokens(self) -> int:
        """Tokens of the calibration text."""
        return self.manifest["n_samples"] * self.manifest["seq_len"]

    def block_name(self, i: int) -> str:
        """Return a block's module path."""
        return f"{self.manifest['prefix']}.{i}"

    def block(self, i: int) -> list[SiteRecord]:
        """Read the sites of one block.

        Raises
        ------
        StatisticsError
            If the block's file is missing or damaged.
        """
        return read_block(self.path, i)

    def check(self, ckpt: Checkpoint) -> None:
        """Raise unless these are statistics of this very model.

        Raises
        ------
        StatisticsError
            If the model's digest is another.
        """
        if self.manifest["model_digest"] != ckpt.digest:
            raise StatisticsError(
                f"these statistics are of another model ({self.manifest['model_name']}, digest "
                f"{self.manifest['model_digest'][:12]}) than {ckpt.path.name} "
                f"({ckpt.digest[:12]}); calibrate this model."
            )


def block_file(i: int) -> str:
    """Return the file name of block `i`'s statistics."""
    return f"block-{i:05d}.safetensors"


def read_block(folder: Path, i: int) -> list[SiteRecord]:
    """Read the sites of one block from a folder that need not be complete yet.

    Raises
    ------
    StatisticsError
        If the block's file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / block_file(i)
    try:
        with safe_open(path, framework="pt") as file:
            sites = json.loads(file.metadata()["sites"])
            records = []
            for index, fields in enumerate(sites):
                head = f"{index}/"
                names = [n for n in file.keys() if n.startswith(head)]
                tensors = {n.removeprefix(head): file.get_tensor(n) for n in names}
                source = tensors.pop("source", None)
                for name in ("linears", "readers"):
                    fields[name] = tuple(fields.get(name, ()))
                site = Site(**fields, source=None if source is None else source.numpy())
                records.append(SiteRecord(site, SiteMoments(tensors)))
            return records
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StatisticsError(
            f"{path.name} of the statistics cannot be read ({error}); calibrate again."
        ) from error


def save_block(folder: Path, i: int, records: list[tuple[Site, dict]]) -> None:
    """Write the statistics of one block, whole or not at all.

    Parameters
    ----------
    folder : Path
    i : int
    records : list of (Site, dict of torch.Tensor)
        As `Moments.tensors` gives them.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    tensors, sites = {}, []
    for index, (site, values) in enumerate(records):
        fields = site._asdict()
        source = fields.pop("source")
        sites.append(fields)
        if source is not None:
            values = values | {"source": torch.as_tensor(np.asarray(source, dtype=np.int64))}
        tensors |= {f"{index}/{name}": value.contiguous() for name, value in values.items()}
    partial = folder / f".{block_file(i)}.partial"
    with writing(partial):
        save_file(tensors, partial, metadata={"sites": json.dumps(sites)})
        put_in_place(partial, folder / block_file(i))


def save_manifest(folder: Path, manifest: dict) -> Stats:
    """Write the manifest, which makes the folder complete, and return the statistics."""
    partial = folder / f".{MANIFEST}.partial"
    try:
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(partial, folder / MANIFEST)
    except OSError as error:
        raise OutputError(f"statistics cannot be written to {folder}: {error}") from error
    return Stats(folder, manifest)


def load_stats(folder: str | Path) -> Stats:
    """Open statistics that `calibrate` wrote.

    Raises
    ------
    StatisticsError
        If the folder is not complete, or of another format.
    """
    if isinstance(folder, Stats):
        return folder
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise StatisticsError(
            f"{folder} holds no complete statistics ({MANIFEST} is missing); run calibrate."
        ) from error
    except (OSError, ValueError) as error:
        raise StatisticsError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StatisticsError(f"{folder} is not of format {FORMAT}; calibrate again.")
    missing = [i for i in range(manifest["n_blocks"]) if not (folder / block_file(i)).is_file()]
    if missing:
        raise StatisticsError(f"{folder}: {block_file(missing[0])} is missing; calibrate again.")
    return Stats(folder, manifest)


def merge_stats(parts: list[Stats], out: str | Path) -> Stats:
    """Add up statistics of one model on several texts.

    Parameters
    ----------
    parts : list of Stats
    out : str or Path
        Folder to make.

    Returns
    -------
    Stats

    Raises
    ------
    StatisticsError
        If the parts are not of the same model, dtype, window length and sketch.
    """
    first, *others = parts
    for part in others:
        for key in _SAME_TO_MERGE:
            if part.manifest[key] != first.manifest[key]:
                raise StatisticsError(
                    f"cannot add statistics: {key} is {first.manifest[key]!r} in "
                    f"{first.path} and {part.manifest[key]!r} in {part.path}."
                )
    folder = new_stats_folder(out)
    for i in range(first.n_blocks):
        merged = []
        for records in zip(*(part.block(i) for part in parts), strict=True):
            values = {name: t.clone() for name, t in records[0].moments.tensors.items()}
            for record in records[1:]:
                for name, total in values.items():
                    merge_tensor(name, total, record.moments.tensors[name])
            merged.append((records[0].site, values))
        save_block(folder, i, merged)
    manifest = first.manifest | {
        "n_samples": sum(part.manifest["n_samples"] for part in parts),
        "calibration_digest": "+".join(part.manifest["calibration_digest"] for part in parts),
    }
    return save_manifest(folder, manifest)


def new_stats_folder(out: str | Path) -> Path:
    """Make the folder for statistics; one that is not complete is used again.

    Raises
    ------
    OutputError
        If it holds other files, or cannot be made.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [p.name for p in folder.iterdir() if not p.name.lstrip(".").startswith("block-")]
    except OSError as error:
        raise OutputError(f"statistics cannot be written to {folder}: {error}") from error
    foreign = [name for name in foreign if name != MANIFEST and not name.startswith(f".{MANIFEST}")]
    if foreign:
        raise OutputError(f"{folder} holds other files ({foreign[0]}); choose another folder.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written; choose a folder that you own.")
    (folder / MANIFEST).unlink(missing_ok=True)
    return folder
