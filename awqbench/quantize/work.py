"""The folder of an unfinished run: what is done so far, and what the run is of."""

from __future__ import annotations

import shutil
from pathlib import Path

from awqbench.errors import OutputError, ResumeError
from awqbench.quantize.blocks import BlockFiles
from awqbench.quantize.durable import is_intact, read_json, remove_sealed, seal, write_json
from awqbench.quantize.stats import block_file


class WorkFolder:
    """A run's folder beside its target; a context that holds the run's lock.

    Parameters
    ----------
    out : Path
        Target folder of the run; the work folder is a hidden one beside it.
    identity : dict
        Model, text and settings; an unfinished run of another identity is not mixed in.
    resume : bool
        False discards what an earlier run left.

    Attributes
    ----------
    blocks : BlockFiles
    facts : dict
        What the run computes with; empty for a new run until `settle`.
    damaged : list of int
        Finished blocks that were not what their digest says; they are removed.
    resumed_blocks : int
        Finished blocks that were found.

    Raises
    ------
    ResumeError
        If an unfinished run differs in model, text or settings; names the difference.
    OutputError
        If another run is writing here, or the folder cannot be made.
    """

    def __init__(self, out: Path, identity: dict, *, resume: bool = True):
        self.path = work_path(out)
        self.result_path = self.path / "result"
        self.identity, self.facts = identity, {}
        self.resume = resume
        self.blocks = BlockFiles(self.path)
        self.damaged: list[int] = []
        self.resumed_blocks = 0
        self._lock = None

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._take_over()
        except OSError as error:
            self.__exit__()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.path.parent} cannot be written: {error}") from error
        except ResumeError:
            self.__exit__()
            raise
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
        before = read_json(record)
        if before is not None and self.resume:
            if before["identity"] != self.identity:
                changed = _difference(before["identity"], self.identity)
                raise ResumeError(
                    f"{self.path.name} holds an unfinished run with another {changed}. Finish it "
                    "with those settings, or start anew with resume=False (--no-resume)."
                )
            self.facts = before["facts"]
        else:
            for path in self.path.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.path.glob(".*.partial"):
            path.unlink()
        shutil.rmtree(self.result_path, ignore_errors=True)
        self._write_record()
        n_blocks = 1 + max((int(p.stem[6:]) for p in self.path.glob("block-*.json")), default=-1)
        self.damaged = self.blocks.remove_damaged(n_blocks)
        self.resumed_blocks = sum(self.blocks.has(i) for i in range(n_blocks))

    def settle(self, facts: dict) -> None:
        """Note what a new run computes with: threads, batch size, sketch.

        A run that goes on keeps those it began with, so that it ends with the same bytes.
        """
        if not self.facts:
            self.facts = facts
            self._write_record()

    def _write_record(self) -> None:
        write_json(self.path / "run.json", {"identity": self.identity, "facts": self.facts})

    def seal_stats(self, folder: Path, i: int) -> None:
        """Note that the statistics of a block are on disk, and their digest."""
        seal(folder / block_file(i))

    def has_stats(self, folder: Path, i: int) -> bool:
        """Tell whether the statistics of a block are there as they were sealed."""
        return (folder / block_file(i)).is_file() and is_intact(folder / block_file(i))

    def drop_stats(self, folder: Path, i: int) -> None:
        """Remove the statistics of a finished block."""
        remove_sealed(folder / block_file(i))

    def discard(self) -> None:
        """Remove the folder; the run is finished."""
        shutil.rmtree(self.path, ignore_errors=True)


def work_path(out: Path) -> Path:
    """Return the folder of an unfinished run with target `out`."""
    return out.with_name(f".{out.name}.unfinished")


def _difference(before: dict, now: dict) -> str:
    flat_before, flat_now = (d | d.get("settings", {}) for d in (before, now))
    for key, value in flat_now.items():
        if key != "settings" and flat_before.get(key) != value:
            return f"{key} ({flat_before.get(key)!r}, now {value!r})"
    return "identity"
