"""Files that are on the disk whole or not at all, whatever happens to process or power."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from awqbench.errors import OutputError
from awqbench.formats.shard import flush

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTIAL = re.compile(r"(\.[0-9a-f]{8})?\.partial$")
# safetensors passes the system's number on in words.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, flush it to the disk, then give it its name.

    A crash, also of the machine, leaves the file that was there before, or none.

    Parameters
    ----------
    path : Path
    write : callable
        Gets the path to write to.

    Raises
    ------
    OutputError
        If the disk is full or cannot be written; says how much is free.
    """
    # Another process may be writing the same file: its last rename wins, either is whole.
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    with writing(partial):
        write(partial)
        put_in_place(partial, path)


def put_in_place(partial: Path, path: Path) -> None:
    """Flush a written file to the disk and rename it; the rename is durable too."""
    # safetensors makes files that only their owner can read; the folder says who may.
    os.chmod(partial, path.parent.stat().st_mode & 0o666)
    flush(partial)
    os.replace(partial, path)
    flush(path.parent)


@contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Turn what a write can fail with into one named error, and remove what was half written.

    Raises
    ------
    OutputError
        In place of OSError, and of the error by which safetensors reports one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        folder = partial.parent
        if _number_of(error) in _FULL:
            free = shutil.disk_usage(folder).free
            name = _PARTIAL.sub("", partial.name.removeprefix("."))
            raise OutputError(
                f"no space for {name} in {folder} ({error}; {free:,} bytes are "
                "free). What was finished is kept: make space and run the same command again."
            ) from error
        raise OutputError(f"{folder} cannot be written: {error}") from error


def _number_of(error: Exception) -> int | None:
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def write_json(path: Path, value: object) -> None:
    """Write JSON durably.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    write_durably(path, lambda partial: partial.write_text(json.dumps(value, indent=1) + "\n"))


def read_json(path: Path) -> dict | None:
    """Return the object in a JSON file, None if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path, **facts) -> None:
    """Write, beside a finished file, its digest and facts about it; this completes it.

    Parameters
    ----------
    path : Path
        ``NAME.safetensors``; the seal is ``NAME.json``.
    **facts
        What JSON can hold.
    """
    size = path.stat().st_size
    write_json(path.with_suffix(".json"), {"sha256": file_digest(path), "bytes": size} | facts)


def sealed_facts(path: Path) -> dict | None:
    """Return the facts of a sealed file without reading it, None if it has no seal."""
    return read_json(path.with_suffix(".json")) if path.is_file() else None


def is_intact(path: Path) -> bool:
    """Tell whether a file is what was sealed, by its digest."""
    facts = sealed_facts(path)
    if facts is None or facts.get("bytes") != path.stat().st_size:
        return False
    return facts.get("sha256") == file_digest(path)


def remove_sealed(path: Path) -> None:
    """Remove a file and its seal, the seal first."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
