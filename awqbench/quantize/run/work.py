"""The folder of an unfinished run: what is done so far, and what the run is of."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from uuid import uuid4

from awqbench.errors import OutputError, ResumeError
from awqbench.quantize.durable import (
    is_intact,
    read_json,
    remove_sealed,
    seal,
    sealed_facts,
    write_json,
)
from awqbench.quantize.run.blocks import BlockFiles
from awqbench.quantize.statistics.stats import block_file

# What the bytes of a block's statistics depend on: of a run's identity, and of its facts.
_STATISTICS_DEPEND_ON = ("model_digest", "calibration_digest", "routing", "dtype")
_STATISTICS_COMPUTED_WITH = ("threads", "batch_size", "sketch")


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
    files_path : Path
        Where blocks, statistics and hidden states lie: a folder of its own for each run that
        began anew. A worker that nobody stopped may still write for the run before.
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
        self.files_path = self.path / f"run-{uuid4().hex[:8]}"
        self.blocks = BlockFiles(self.files_path)
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
        if before is not None and "files" in before and self.resume:
            if before["identity"] != self.identity:
                changed = _difference(before["identity"], self.identity)
                raise ResumeError(
                    f"{self.path.name} holds an unfinished run with another {changed}. Finish it "
                    "with those settings, or start anew with resume=False (--no-resume)."
                )
            self.facts = before["facts"]
            self.files_path = self.path / before["files"]
            self.blocks = BlockFiles(self.files_path)
        else:
            for path in self.path.iterdir():
                if path.is_dir():  # a worker that nobody stopped may still write into it
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != "lock":
                    path.unlink()
        shutil.rmtree(self.result_path, ignore_errors=True)
        self.files_path.mkdir(exist_ok=True)
        for path in self.files_path.glob(".*.partial"):
            path.unlink(missing_ok=True)
        self._write_record()
        blocks = self.files_path.glob("block-*.json")
        n_blocks = 1 + max((int(p.stem[6:]) for p in blocks), default=-1)
        self.damaged = self.blocks.remove_damaged(n_blocks)
        self.resumed_blocks = sum(self.blocks.has(i) for i in range(n_blocks))

    def settle(self, facts: dict) -> None:
        """Note what a new run computes with: threads, device, batch size, sketch.

        A run that goes on keeps those it began with, so that it ends with the same bytes.
        """
        if not self.facts:
            self.facts = facts
            self._write_record()

    def amend(self, facts: dict) -> None:
        """Note other facts in place of some of the run's, which nothing depends on yet."""
        self.facts = self.facts | facts
        self._write_record()

    def _write_record(self) -> None:
        record = {"identity": self.identity, "facts": self.facts, "files": self.files_path.name}
        write_json(self.path / "run.json", record)

    def seal_stats(self, folder: Path, i: int) -> None:
        """Note that the statistics of a block are on disk, their digest, and what they are of."""
        seal(folder / block_file(i), of=self._statistics_of())

    def has_stats(self, folder: Path, i: int) -> bool:
        """Tell whether the statistics of a block are there, this run's and as they were sealed.

        A folder to keep may hold those of another text.
        """
        path = folder / block_file(i)
        facts = sealed_facts(path)
        return facts is not None and facts.get("of") == self._statistics_of() and is_intact(path)

    def _statistics_of(self) -> str:
        """Return a digest of all that the bytes of a block's statistics depend on."""
        of = {key: self.identity.get(key) for key in _STATISTICS_DEPEND_ON}
        of |= {key: self.facts.get(key) for key in _STATISTICS_COMPUTED_WITH}
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()

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
