"""Chosen blocks of a finished folder once more, with other settings; all else stays."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import FormatError, ParameterError, ResumeError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.headers import read_header
from awqbench.formats.shard import flush
from awqbench.quantize.calibrate import run_dtype
from awqbench.quantize.choices.block import QuantizedBlock
from awqbench.quantize.durable import read_json, seal
from awqbench.quantize.run.device import AUTO, chosen_device, described
from awqbench.quantize.run.loop import Run
from awqbench.quantize.run.publish import RECORD, publish, section_of, stored_prefix
from awqbench.quantize.run.queue import SerialQueue
from awqbench.quantize.run.record import record_of
from awqbench.quantize.run.work import WorkFolder
from awqbench.quantize.search import make_settings
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.stats import Stats, load_stats
from awqbench.quantize.stopwatch import Stopwatch, fixed_threads
from awqbench.text import checked_tokens, text_tokens, tokens_digest

if TYPE_CHECKING:
    from awqbench.model import BlockRunner

# Settings that a linear may have for itself; the others leave no trace in a folder's layout.
_IN_LAYOUT = ("bits", "group_size", "zero_point")


def redo(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    blocks: Iterable[str | int],
    *,
    stats: Stats | str | Path | None = None,
    tokens: np.ndarray | None = None,
    max_memory: int | str | None = None,
    device: str = AUTO,
    **changes,
) -> dict:
    """Quantize chosen blocks of a finished folder again, with other settings.

    Without kept statistics the text runs through the model up to the last of the blocks. The
    folder is exchanged whole at the end; until then it stays as it was.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        The full-precision model.
    out : str or Path
        A folder that `quantize` made of it.
    blocks : iterable of str or int
        Paths such as ``"model.layers.7"``, or numbers.
    stats : Stats or str or Path, optional
        Statistics of the same text, if they were kept.
    tokens : (n, seq) ndarray of int64, optional
        The same text; by default that of `quantize`.
    max_memory : int or str, optional
    device : str
        To search on, as in `quantize`; "auto" is what the folder was made with.
    **changes
        Fields of `Settings` for these blocks, such as ``rounding="gptq"`` or, where the layout
        can hold several, ``group_size=64``.

    Returns
    -------
    dict
        The folder's new record; ``redone`` lists blocks and changes.

    Raises
    ------
    ParameterError
        If a block does not exist.
    FormatError
        If `out` has no record of a run, or its layout cannot hold such blocks beside the rest.
    ResumeError
        If model or text are not those of the folder.
    DeviceError
        If `device` is not there.
    """
    from awqbench.model import BlockRunner

    started, watch = time.perf_counter(), Stopwatch()
    ckpt, out = open_checkpoint(ckpt), Path(out).expanduser().absolute()
    _finish_exchange(out)
    before = read_json(out / f"{RECORD}.json")
    if before is None or before.get("format") != "awqbench-run-1":
        raise FormatError(f"{out} has no {RECORD}.json of quantize(); make it with quantize first.")
    if stats is None:
        tokens = text_tokens(ckpt) if tokens is None else checked_tokens(tokens)
        text_digest = tokens_digest(tokens)
    else:
        stats = load_stats(stats)
        stats.check(ckpt)
        text_digest = stats.manifest["calibration_digest"]
    for what, now, then in (
        ("model", ckpt.digest, before["model_digest"]),
        ("text", text_digest, before["calibration"]["calibration_digest"]),
    ):
        if now != then:
            raise ResumeError(
                f"{out.name} was made with another {what} ({then[:12]}, not {now[:12]})."
            )
    runner = BlockRunner(ckpt, dtype=None if stats is not None else run_dtype(ckpt, None))
    chosen = sorted({_number(runner, block) for block in blocks})
    old = Settings(**before["settings"])
    own = make_settings(old, **changes)
    whole = _with_rules(old, [runner.block_name(i) for i in chosen], changes)
    section_of(ckpt, whole, runner)  # before any work: can the layout hold it?
    run = Run(ckpt, runner, whole, watch)
    run.settings_of_block = dict.fromkeys(chosen, own)
    run.device = described(chosen_device(_device_of(before) if device == AUTO else device))
    words = {"blocks": [runner.block_name(i) for i in chosen], "changes": changes}
    identity = {
        "model_digest": ckpt.digest,
        "calibration_digest": text_digest,
        "settings": whole.as_dict(),
        "redone": words,
    }
    target = _beside(out, "redone")
    with WorkFolder(out, identity, resume=False) as work:
        _take_finished(work, out, runner, chosen, before)
        threads = before["computed_with"]["threads"]
        if stats is None:
            run.plan(work, tokens, max_memory=max_memory, threads=threads)
        else:
            run.given(work, stats, threads)
        with fixed_threads(work.facts["threads"]):
            run.all_blocks(work, SerialQueue, None)
            record = record_of(ckpt, whole, before["calibration"], work, runner)
            record["redone"] = [*before.get("redone", []), words]
            record |= {"memory": run.memory(), "times": run.times(work, started)}
            shutil.rmtree(target, ignore_errors=True)
            publish(ckpt, target, whole, work, runner, record)
        _exchange(out)
        work.discard()
    return record


def _device_of(record: dict) -> str:
    """Return the kind of device that a run was made on."""
    return record["computed_with"].get("device", "cpu").partition(" ")[0]


def _number(runner: BlockRunner, block: str | int) -> int:
    names = [runner.block_name(i) for i in range(runner.n_blocks)]
    if isinstance(block, str) and block in names:
        return names.index(block)
    if isinstance(block, int) and 0 <= block < len(names):
        return block
    raise ParameterError(f"no block {block!r}: there are {names[0]} to {names[-1]}.")


def _with_rules(old: Settings, names: list[str], changes: dict) -> Settings:
    """Return the folder's settings with a rule for blocks that differ in what a layout tells."""
    told = {key: changes[key] for key in _IN_LAYOUT if key in changes}
    if not told:
        return old
    rules = [{"pattern": f"^{re.escape(name)}\\.", **told} for name in names]
    fields = old.as_dict()
    return Settings(**(fields | {"rules": [*rules, *fields["rules"]]}))


def _take_finished(
    work: WorkFolder, out: Path, runner: BlockRunner, chosen: list[int], before: dict
) -> None:
    """Make finished blocks of those that stay: by links where they are files of their own."""
    done = open_checkpoint(out)
    for i in range(runner.n_blocks):
        if i in chosen:
            continue
        name = runner.block_name(i)
        head = f"{stored_prefix(runner.stored_names(i), name)}."
        tensors = [n for n in done.tensors if n.startswith(head)]
        rows, curves = (_rows_of(before[key], name) for key in ("linears", "curves"))
        files = {done.tensors[n].file for n in tensors}
        if len(files) == 1 and len(read_header(next(iter(files)))) == len(tensors):
            os.link(next(iter(files)), work.blocks.path(i))
            seal(work.blocks.path(i), rows=rows, curves=curves, seconds={})
        else:
            block = {n.removeprefix(head): done.read(n) for n in tensors}
            work.blocks.save(i, head[:-1], QuantizedBlock(block, rows, curves), {})


def _rows_of(table: list[dict], block: str) -> list[dict]:
    """Return a block's rows of a record's table, as the block itself keeps them."""
    mine = (row for row in table if row["block"] == block)
    return [{key: value for key, value in row.items() if key != "block"} for row in mine]


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def _exchange(out: Path) -> None:
    """Put the new folder in the place of the old one, which goes when that is done."""
    replaced = _beside(out, "replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    out.rename(replaced)
    _finish_exchange(out)


def _finish_exchange(out: Path) -> None:
    """Complete an exchange that was stopped between its two renames."""
    new, replaced = _beside(out, "redone"), _beside(out, "replaced")
    if replaced.exists() and not out.exists():
        new.rename(out)
        flush(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)
