"""Write a model folder tensor by tensor; readers see it whole or not at all.

Everything goes to a hidden folder beside the target, which is renamed at the end: a crash
leaves the target as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import OutputError
from awqbench.formats.checkpoint import SIDE_FILES, Checkpoint
from awqbench.formats.shard import ShardWriter, flush
from awqbench.formats.shards import INDEX_FILE, SINGLE_FILE

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES = 5_000_000_000


def require_new_folder(out: str | Path) -> Path:
    """Check that a folder can be made here, before any work is done.

    Returns
    -------
    Path
        Absolute; the folder does not exist or is empty.

    Raises
    ------
    OutputError
        If it holds files already, or its parent cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; choose another folder or remove it.")
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} cannot be written; choose a folder that you own.")
    return out


class CheckpointWriter:
    """Write tensors to shards, then publish the folder; use as a context manager.

    Leaving the context without `finish` removes what was written.

    Parameters
    ----------
    out : str or Path
        Folder to make; must not hold files.
    max_shard_bytes : int
        Bytes of tensor data in a shard.
    partial : Path, optional
        The folder that the files are made in, on the same file system; by default a hidden
        one beside `out`.

    Raises
    ------
    OutputError
        If `out` holds files or cannot be written.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        partial: Path | None = None,
    ):
        self.out = require_new_folder(out)
        self.partial = partial or self.out.with_name(f".{self.out.name}.partial-{os.getpid()}")
        self.max_shard_bytes = max_shard_bytes
        self._shard: ShardWriter | None = None
        self._shards: list[dict[str, int]] = []

    def __enter__(self) -> CheckpointWriter:
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{self.partial.parent} cannot be written: {error}") from error
        return self

    def __exit__(self, *exc) -> None:
        if self._shard is not None:
            self._shard.abandon()
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor; it is not kept in memory."""
        nbytes = tensor.numel() * tensor.element_size()
        if self._shard is not None and self._shard.nbytes + nbytes > self.max_shard_bytes:
            self._close_shard()
        try:
            if self._shard is None:
                self._shard = ShardWriter(self.partial / f"shard-{len(self._shards):05d}")
            self._shard.add(name, tensor)
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written: {error}") from error

    def adopt(self, file: Path) -> None:
        """Take a finished safetensors file as a shard, without a second copy on the disk.

        The file itself stays where it is: the shard is a hard link to it (a copy where the
        file system has no links), so that leaving without `finish` loses nothing.
        """
        from awqbench.formats.headers import read_header

        if self._shard is not None:  # it has the next number
            self._close_shard()
        shard = self.partial / f"shard-{len(self._shards):05d}"
        sizes = {name: info.nbytes for name, info in read_header(file).items()}
        try:
            try:
                os.link(file, shard)
            except OSError:
                shutil.copyfile(file, shard)
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written: {error}") from error
        self._shards.append(sizes)

    def _close_shard(self) -> None:
        try:
            shard = self._shard or ShardWriter(self.partial / f"shard-{len(self._shards):05d}")
            shard.close()
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written: {error}") from error
        self._shards.append(shard.sizes)
        self._shard = None

    def finish(self, config: dict, *, side_files: Checkpoint | None = None, **texts: str) -> Path:
        """Write configuration and index, and make the folder visible.

        Parameters
        ----------
        config : dict
            What config.json shall hold.
        side_files : Checkpoint, optional
            Where tokenizer and generation configuration are copied from.
        **texts : str
            Further JSON files: ``run_record="{...}"`` becomes run_record.json.

        Returns
        -------
        Path
            The folder.
        """
        if self._shard is not None or not self._shards:
            self._close_shard()
        self._name_shards()
        self._write("config.json", json.dumps(config, indent=2, sort_keys=False) + "\n")
        for name, text in texts.items():
            self._write(f"{name}.json", text)
        try:
            for name in SIDE_FILES if side_files is not None else ():
                if (side_files.path / name).is_file():
                    shutil.copyfile(side_files.path / name, self.partial / name)
            for file in self.partial.iterdir():
                flush(file)
            flush(self.partial)
            if self.out.exists():
                self.out.rmdir()  # empty, as checked
            self.partial.rename(self.out)
            flush(self.out.parent)
        except OSError as error:
            raise OutputError(f"{self.out} cannot be made: {error}") from error
        return self.out

    def _name_shards(self) -> None:
        count = len(self._shards)
        weight_map, total = {}, 0
        for i, sizes in enumerate(self._shards):
            name = SINGLE_FILE
            if count > 1:
                name = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            (self.partial / f"shard-{i:05d}").rename(self.partial / name)
            weight_map |= dict.fromkeys(sizes, name)
            total += sum(sizes.values())
        if count > 1:
            index = {
                "metadata": {"total_size": total},
                "weight_map": weight_map,
            }
            self._write(INDEX_FILE, json.dumps(index, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            (self.partial / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self.out / name} cannot be written: {error}") from error
