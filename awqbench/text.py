"""Calibration and evaluation text: the Python standard library, a file, or a data set.

The default text is the standard library's own source as found on this machine, so
nothing foreign is shipped and nothing is downloaded. Its modules are split by a hash of
their path: a module is either held out for evaluation or open to training and
calibration, on every machine alike.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from awqbench.errors import CalibrationTextError

# One module in twenty is held out. The hash is of the path, so the split does not move
# when a module's text changes from one Python release to the next.
HELD_OUT_ONE_IN = 20
# Generated tables, not code that a person wrote.
_TABLES = ("encodings", "pydoc_data")
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_FOREIGN = ("site-packages", "dist-packages", "_bundled")


def is_held_out(module: str) -> bool:
    """Tell whether the standard-library module at a relative path is for evaluation only.

    Parameters
    ----------
    module : str
        Path below the standard library, with forward slashes, such as ``"json/decoder.py"``.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_held_out("json/decoder.py"), is_held_out("heapq.py")
    (False, False)
    """
    digest = hashlib.sha1(module.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % HELD_OUT_ONE_IN == 0


def stdlib_modules(split: str) -> dict[str, Path]:
    """List the standard library's source files of one split.

    ``"training"`` is ``"calibration"`` and the standard library's own tests; neither
    holds a module of ``"evaluation"``.

    Parameters
    ----------
    split : {"training", "calibration", "evaluation"}

    Returns
    -------
    dict of str to Path
        Path below the standard library to the file, sorted by that path.

    Raises
    ------
    CalibrationTextError
        If `split` has another name, or this Python has no source files on disk.
    """
    if split not in ("training", "calibration", "evaluation"):
        raise CalibrationTextError(
            f"no text split {split!r}; choose 'training', 'calibration' or 'evaluation'."
        )
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        folders = module.split("/")[:-1]
        if any(folder in _FOREIGN for folder in folders) or module.startswith(_TABLES):
            continue
        is_test = any(folder in _TEST_FOLDERS for folder in folders)
        if is_test and split != "training":
            continue
        if (not is_test and is_held_out(module)) == (split == "evaluation"):
            modules[module] = path
    if not modules:
        raise CalibrationTextError(
            f"the standard library at {root} has no .py files; give a text file by source=PATH."
        )
    return modules


def text_tokens(
    ckpt,
    source: str | Path = "stdlib",
    split: str = "calibration",
    *,
    n_samples: int = 128,
    seq_len: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Tokenize a text and cut it into windows.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        Whose tokenizer is used.
    source : str or Path
        ``"stdlib"``; a text file; a ``.jsonl`` file with a `text` field in each line; or
        ``"datasets:NAME"`` for the train split of a data set of the `datasets` package.
    split : {"calibration", "evaluation"}
        Half of the standard library's modules that is used; other sources are cut, nine
        tenths for calibration and the last tenth for evaluation.
    n_samples : int
        Windows.
    seq_len : int
        Tokens in a window.
    seed : int
        Where the windows begin, for calibration; evaluation windows are evenly spaced.

    Returns
    -------
    (n_samples, seq_len) ndarray of int64

    Raises
    ------
    CalibrationTextError
        If the text is empty, too short for the windows, or cannot be read.
    """
    if n_samples < 1 or seq_len < 2:
        raise CalibrationTextError(
            f"n_samples is {n_samples} and seq_len {seq_len}; need at least 1 window of 2 tokens."
        )
    tokenizer = load_tokenizer(ckpt)
    # Windows are drawn from four times the text that they need, not from all of it: the
    # standard library takes 8 seconds to tokenize whole.
    enough = None if split == "evaluation" else 4 * n_samples * seq_len
    ids = _token_stream(tokenizer, _documents(source, split, seed), enough)
    if len(ids) < seq_len:
        raise CalibrationTextError(
            f"the {split} text of {source} has {len(ids)} tokens, fewer than one window of "
            f"{seq_len}; give a longer text or a smaller seq_len."
        )
    if len(ids) < n_samples * seq_len:
        raise CalibrationTextError(
            f"the {split} text of {source} has {len(ids):,} tokens, enough for "
            f"{len(ids) // seq_len} windows of {seq_len}, not {n_samples}; give a longer text or "
            f"n_samples={len(ids) // seq_len}."
        )
    n_slots = len(ids) // seq_len
    if split == "evaluation":
        slots = np.linspace(0, n_slots - 1, n_samples).round().astype(int)
    else:
        slots = np.sort(np.random.default_rng(seed).choice(n_slots, n_samples, replace=False))
    return np.stack([ids[slot * seq_len : (slot + 1) * seq_len] for slot in slots])


def load_tokenizer(ckpt):
    """Return the tokenizer of a model folder; nothing is downloaded, no code is run.

    Raises
    ------
    CalibrationTextError
        If the folder has no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    from awqbench.formats.checkpoint import open_checkpoint

    path = open_checkpoint(ckpt).path
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationTextError(
            f"{path.name} has no tokenizer that transformers can read ({error}); copy its "
            "tokenizer files beside the weights, or pass token ids of your own."
        ) from error


def checked_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return token ids as (n, seq) int64.

    Raises
    ------
    CalibrationTextError
        If they are not that.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise CalibrationTextError(
            f"tokens are {tokens.dtype} of shape {tokens.shape}; expected (n_samples, seq_len) "
            "integers with at least one window, as text_tokens() gives them."
        )
    return tokens.astype(np.int64, copy=False)


def tokens_digest(tokens: np.ndarray) -> str:
    """Return the SHA-256 of token ids and their shape, the identity of a text."""
    tokens = np.ascontiguousarray(tokens, dtype="<i8")
    return hashlib.sha256(str(tokens.shape).encode() + tokens.tobytes()).hexdigest()


def _documents(source: str | Path, split: str, seed: int) -> Iterator[str]:
    if str(source) == "stdlib":
        paths = list(stdlib_modules(split).values())
        if split != "evaluation":
            np.random.default_rng(seed).shuffle(paths)
        for path in paths:
            yield path.read_text(encoding="utf-8", errors="replace")
        return
    if str(source).startswith("datasets:"):
        texts = _dataset_texts(str(source).removeprefix("datasets:"))
    else:
        texts = _file_texts(Path(source))
    if split not in ("calibration", "evaluation"):
        raise CalibrationTextError(
            f"{source} has no split {split!r}; choose 'calibration' or 'evaluation' "
            "('training' exists for source='stdlib' only)."
        )
    whole = "\n\n".join(texts)
    if not whole.strip():
        raise CalibrationTextError(f"the text of {source} is empty; give a file with text.")
    border = len(whole) * 9 // 10
    yield whole[:border] if split == "calibration" else whole[border:]


def _file_texts(path: Path) -> list[str]:
    try:
        raw = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CalibrationTextError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix != ".jsonl":
        return [raw]
    texts = []
    # Not splitlines(): JSON strings may hold U+2028 and U+0085 as they are.
    for number, line in enumerate(raw.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise CalibrationTextError(
                f"{path} line {number} is not a JSON object with a 'text' field."
            )
        texts.append(text)
    return texts


def _dataset_texts(name: str) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise CalibrationTextError(
            "source 'datasets:...' needs the datasets package: pip install datasets."
        ) from error
    rows: Any = datasets.load_dataset(name, split="train")
    if "text" not in rows.column_names:
        raise CalibrationTextError(f"{name} has columns {rows.column_names}, none named 'text'.")
    return list(rows["text"])


def _token_stream(tokenizer, documents: Iterator[str], enough: int | None) -> np.ndarray:
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if end is not None:
            ids.append(end)
        if enough is not None and len(ids) >= enough:
            break
    return np.array(ids, dtype=np.int64)
