"""A quantization in a process of its own, its memory sampled while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.errors import OutputError
from awqbench.quantize.run.publish import RECORD
from awqbench.quantize.run.work import work_path

if TYPE_CHECKING:
    import pandas as pd

_EVERY_S = 0.02


class WatchedRun(NamedTuple):
    """What was seen of a run.

    Parameters
    ----------
    samples : DataFrame
        `seconds` since the process was started, `rss_bytes` (resident, shared libraries
        included) and `finished`, the blocks that were on disk.
    record : dict
        The run record.
    """

    samples: pd.DataFrame
    record: dict


def watch_run(model: str | Path, out: str | Path, **options: Any) -> WatchedRun:
    """Run ``awqbench quantize`` in a child process and sample its resident memory.

    Parameters
    ----------
    model : str or Path
    out : str or Path
        Folder to make.
    **options
        Of the command, such as ``group_size=64`` or ``max_memory="2GiB"``.

    Returns
    -------
    WatchedRun

    Raises
    ------
    OutputError
        If the command fails; with the last line that it said.
    """
    import pandas as pd
    import psutil

    out = Path(out)
    rows = []
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        with subprocess.Popen(
            _command(model, out, options), stdout=subprocess.DEVNULL, stderr=said
        ) as child:
            process = psutil.Process(child.pid)
            while child.poll() is None:
                seconds = time.perf_counter() - started
                rows.append((seconds, _resident(process), _finished(work_path(out))))
                time.sleep(_EVERY_S)
        if child.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["no word"])[-1]
            raise OutputError(f"quantizing ended with status {child.returncode}: {last}")
    samples = pd.DataFrame(rows, columns=["seconds", "rss_bytes", "finished"])
    record = json.loads((out / f"{RECORD}.json").read_text(encoding="utf-8"))
    # The work folder, and what is counted in it, goes when the run is over.
    samples["finished"] = samples["finished"].cummax()
    return WatchedRun(samples[samples["rss_bytes"] > 0].reset_index(drop=True), record)


def _command(model: str | Path, out: Path, options: Mapping[str, Any]) -> list[str]:
    command = [sys.executable, "-m", "awqbench.cli", "quantize", str(model), str(out)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def _finished(folder: Path) -> int:
    """Count the finished blocks of a run; 0 where its folder is not there yet, or no more."""
    with suppress(FileNotFoundError):
        return sum(1 for _ in folder.glob("run-*/block-*.json"))
    return 0


def _resident(process) -> int:
    """Return resident bytes, 0 for a process that has just ended."""
    import psutil

    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
