"""Damage small model folders of every layout, open them, read everything.

Only errors of awqbench may come out, with a text that can be printed, and no call may take
longer than a second:

    python tests/formats/fuzz_folders.py --inputs 100000 --seed 0
    python tests/formats/fuzz_folders.py --seed 0 --only 4711 --keep folder  # one input again
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from damaged_folders import damaged
from small_folders import base_folders

from awqbench.errors import AwqbenchError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.packed import PackedWeight

LIMIT_S = 1.0
MAX_MESSAGE_CHARACTERS = 4000
# Memory that an input may make us ask for, above what the interpreter has mapped.
MEMORY_BYTES = 2 << 30
# A call into C that never returns escapes the signal; this ends the script, folder kept.
HANG_S = 300
# A folder in memory: most of an input's time is otherwise the disk's.
MEMORY_FOLDER = Path("/dev/shm")


class TookTooLongError(BaseException):
    """A call kept us busy beyond the limit; no handler of ours may swallow it."""


class UnreadableMessageError(Exception):
    """An error's text is empty, endless, or holds characters that steer a terminal."""


def run(
    seed: int, numbers: range, *, limit_s: float = LIMIT_S, keep: Path | None = None
) -> tuple[Counter, list[tuple[int, str]]]:
    """Try the inputs of `numbers`; return what came of them, and (number, traceback) of faults."""
    bases, counts, faults = base_folders(), Counter(), []
    root = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    path = keep or Path(tempfile.mkdtemp(prefix="fuzz_folders_", dir=root))
    path.mkdir(exist_ok=True)
    there: dict[str, bytes] = {}
    try:
        for number in numbers:
            write_files(path, damaged(random.Random(f"{seed}:{number}"), bases), there)
            kind, text = attempt(path, limit_s)
            counts[kind] += 1
            if text:
                faults.append((number, text))
    finally:
        if keep is None:
            shutil.rmtree(path)
    return counts, faults


def write_files(path: Path, files: dict[str, bytes], there: dict[str, bytes]) -> None:
    """Make the folder hold `files`, touching only what differs from what is `there`."""
    for name in there.keys() - files.keys():
        (path / name).unlink()
        del there[name]
    for name, raw in files.items():
        if there.get(name) != raw:
            (path / name).write_bytes(raw)
            there[name] = raw


def attempt(path: Path, limit_s: float) -> tuple[str, str]:
    """Read a folder; return what came of it and, where that is a fault, its traceback."""

    def stop(signum, frame):
        raise TookTooLongError(f"a call was stopped after {limit_s} s")

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        messages = read_everything(path, limit_s)
        for message in messages:
            check_message(message)
    except (Exception, TookTooLongError) as error:  # whatever it is, it is what we look for
        return type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return ("refused" if messages else "read"), ""


def read_everything(path: Path, limit_s: float) -> list[str]:
    """Open a folder and read all that it holds; returns the texts of what was refused."""
    messages = []

    def try_to(action, *args):
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        start = time.perf_counter()
        try:
            return action(*args)
        except AwqbenchError as error:
            messages.append(str(error))
        finally:
            if time.perf_counter() - start > limit_s:
                raise TookTooLongError("a call into C took too long and no signal stopped it")

    ckpt = try_to(open_checkpoint, path)
    if ckpt is None:
        return messages
    found = try_to(lambda: ckpt.quantization)
    if found is not None:
        found.summary()
    for name in ckpt.tensors:
        try_to(ckpt.read, name)
    dense = [name.removesuffix(".weight") for name in ckpt.tensors if name.endswith(".weight")]
    for name in dict.fromkeys([*(try_to(ckpt.quantized_linears) or ()), *dense]):
        weight = try_to(ckpt.linear, name)
        if isinstance(weight, PackedWeight) and weight.dequantize().shape != weight.codes.shape:
            raise TypeError(f"{name} decodes to another shape than its codes have.")
    return messages


def check_message(message: str) -> None:
    """Raise if an error's text would harm who reads it."""
    if not 10 < len(message) < MAX_MESSAGE_CHARACTERS:
        raise UnreadableMessageError(f"{len(message)} characters: {message[:200]!r}")
    if not message.replace("\n", "").isprintable():
        raise UnreadableMessageError(f"not printable: {ascii(message)[:400]}")


def limit_memory() -> None:
    """Turn an allocation of petabytes into a MemoryError, before the machine swaps."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, hard))


def run_in_blocks(seed: int, n_inputs: int) -> tuple[Counter, list[tuple[int, str]]]:
    """Run inputs 0 to `n_inputs`, ending the script where a block of 1000 hangs."""
    counts, faults = Counter(), []
    for first in range(0, n_inputs, 1000):
        # Says of a hang where it is, and in which inputs.
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        print(f"\r{first} of {n_inputs}", end="\r", file=sys.stderr, flush=True)
        more, found = run(seed, range(first, min(first + 1000, n_inputs)))
        counts += more
        faults += found
    faulthandler.cancel_dump_traceback_later()
    return counts, faults


def by_last_line(faults: list[tuple[int, str]]) -> dict[str, list[int]]:
    """Return the first traceback of each place and kind of fault, with the inputs' numbers."""
    first, numbers = {}, {}
    for number, text in faults:
        lines = text.strip().splitlines()
        key = (lines[-1].partition(":")[0], *lines[-3:-2])
        text = first.setdefault(key, text)
        numbers.setdefault(text, []).append(number)
    return numbers


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input to try again")
    parser.add_argument("--keep", type=Path, help="with --only: a new folder to leave it in")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if sys.platform == "linux":
        limit_memory()
    start = time.perf_counter()
    if args.only is None:
        counts, faults = run_in_blocks(args.seed, args.inputs)
    else:
        counts, faults = run(args.seed, range(args.only, args.only + 1), keep=args.keep)
    n_done, time_s = sum(counts.values()), time.perf_counter() - start
    print(f"{n_done} inputs, seed {args.seed}, {n_done / time_s:.0f} inputs/s")
    for kind, count in counts.most_common():
        print(f"{count:8d} {kind}")
    for text, numbers in by_last_line(faults).items():
        again = ", ".join(map(str, numbers[:5]))
        print(f"\n{len(numbers)} times; --seed {args.seed} --only {again}\n{text}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
