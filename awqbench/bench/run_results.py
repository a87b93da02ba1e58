"""Two runs side by side: is the result the same, byte for byte? And a run stopped on purpose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from awqbench.quantize.run.publish import RECORD

# What the record says of a run and not of its result, as `awqbench.quantize` documents.
OF_THE_RUN = ("finished", "times", "resumed_blocks", "damaged_blocks", "memory")


def result_digests(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a quantized folder, by name.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    dict of str to str
        Of the run record without `OF_THE_RUN`.
    """
    found = {}
    for file in sorted(Path(folder).iterdir()):
        data = file.read_bytes()
        if file.name == f"{RECORD}.json":
            record = json.loads(data)
            data = json.dumps({k: v for k, v in record.items() if k not in OF_THE_RUN}).encode()
        found[file.name] = hashlib.sha256(data).hexdigest()
    return found


class RunStoppedError(RuntimeError):
    """A run was stopped on purpose, by `stop_after`."""


def stop_after(n_blocks: int) -> Callable[..., None]:
    """Return an `on_block` that stops a run when so many blocks are finished.

    Parameters
    ----------
    n_blocks : int
        1 or more.

    Returns
    -------
    callable
        Raises `RunStoppedError`, which leaves the run as Ctrl-C does.
    """
    finished: list[int] = []

    def on_block(i: int, total: int, rows: list[dict]) -> None:
        finished.append(i)
        if len(finished) >= n_blocks:
            raise RunStoppedError(f"stopped on purpose after {len(finished)} of {total} blocks")

    return on_block
