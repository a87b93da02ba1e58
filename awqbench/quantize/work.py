"""The folder of an unfinished run: finished blocks, and what the run is of."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import OutputError, ResumeError, StatisticsError
from awqbench.quantize.stats import Stats, load_stats

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.fold_block import QuantizedBlock


class WorkFolder:
    """Finished blocks of a run beside its target; a context that holds the run's lock.

    Parameters
    ----------
    out : Path
        Target folder of the run; the work folder is a hidden one beside it.
    identity : dict
        Model, text and settings; an unfinished run of another identity is not mixed in.
    resume : bool
        False discards what an earlier run left.

    Raises
    ------
    ResumeError
        If an unfinished run differs in model, text or settings; names the difference.
    OutputError
        If another run is writing here, or the folder cannot be made.
    """

    def __init__(self, out: Path, identity: dict, *, resume: bool = True):
        self.path = out.with_name(f".{out.name}.unfinished")
        self.stats_path = self.path / "stats"
        self.identity = identity
        self.resume = resume
        self.resumed_blocks = 0
        self._lock = None

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._take_over()
        except OSError as error:
            raise OutputError(f"{self.path.parent} cannot be written: {error}") from error
        self.resumed_blocks = len(list(self.path.glob("block-*.safetensors")))
        return self

    def __exit__(self, *exc) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> None:
        """Hold a lock that the system drops when this process ends, however it ends."""
        import fcntl

        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another run is writing {self.path.name}; wait for it or choose another folder."
            ) from error

    def _take_over(self) -> None:
        record = self.path / "run.json"
        before = json.loads(record.read_text()) if record.exists() else None
        if before is not None and before != self.identity and self.resume:
            changed = _difference(before, self.identity)
            raise ResumeError(
                f"{self.path.name} holds an unfinished run with another {changed}. Finish it with "
                "those settings, or start anew with resume=False (--no-resume)."
            )
        if before is None or not self.resume:
            for path in self.path.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        _write_atomic(record, json.dumps(self.identity, indent=1))

    def stats(self) -> Stats | None:
        """Return the statistics that an earlier run completed, if any."""
        try:
            return load_stats(self.stats_path)
        except StatisticsError:
            return None

    def _block(self, i: int) -> Path:
        return self.path / f"block-{i:05d}.safetensors"

    def has_block(self, i: int) -> bool:
        """Tell whether block `i` is finished."""
        return self._block(i).exists()

    def save_block(self, i: int, block: QuantizedBlock) -> None:
        """Write a finished block, whole or not at all."""
        from safetensors.torch import save_file

        tables = json.dumps({"rows": _plain(block.rows), "curves": _plain(block.curves)})
        partial = self.path / f".block-{i:05d}.partial"
        try:
            save_file(
                {name: t.contiguous() for name, t in block.tensors.items()},
                partial,
                metadata={"tables": tables},
            )
            os.replace(partial, self._block(i))
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def block_tensors(self, i: int) -> dict[str, torch.Tensor]:
        """Read a finished block's tensors, by block-relative path."""
        from safetensors.torch import load_file

        return load_file(self._block(i))

    def block_tables(self, i: int) -> dict[str, list[dict]]:
        """Read a finished block's `rows` and `curves`."""
        from safetensors import safe_open

        with safe_open(self._block(i), framework="pt") as file:
            return json.loads(file.metadata()["tables"])

    def discard(self) -> None:
        """Remove the folder; the run is finished."""
        shutil.rmtree(self.path, ignore_errors=True)


def _plain(rows: list[dict]) -> list[dict]:
    """Return rows that JSON can hold: numbers of Python, None for NaN and infinity."""

    def plain(value):
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: plain(value) for key, value in row.items()} for row in rows]


def _difference(before: dict, now: dict) -> str:
    flat_before, flat_now = (d | d.get("settings", {}) for d in (before, now))
    for key, value in flat_now.items():
        if key != "settings" and flat_before.get(key) != value:
            return f"{key} ({flat_before.get(key)!r}, now {value!r})"
    return "identity"


def _write_atomic(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
