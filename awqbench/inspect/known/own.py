"""Errors of awqbench's own family: they carry their fix, and say what to call."""

from __future__ import annotations

import re
from typing import NamedTuple

from awqbench import errors

# What looks further into each kind of error.
_CHECKS = {
    "AlignmentError": "awqbench doctor {model}",
    "NonFiniteError": 'import awqbench as ab; ab.health("{model}").query("nonfinite > 0")',
    "OverflowCastError": 'import awqbench as ab; ab.health("{model}").query("overflow_f16 > 0")',
    "DeviceError": "import awqbench as ab; ab.available_backends()",
    "FormatError": "awqbench inspect {model}",
    "AlreadyQuantizedError": "awqbench inspect {model}",
    "StatisticsError": 'import awqbench as ab; ab.load_stats("stats/")',
    "CalibrationTextError": 'import awqbench as ab; ab.text_tokens("{model}", "YOUR.txt")',
    "BackendError": "import awqbench as ab; ab.available_backends()",
    "ParameterError": "awqbench --help",
    "OutputError": "awqbench quantize {model} OTHER_FOLDER",
    "ResumeError": "awqbench quantize {model} OUT --no-resume",
    "TraceError": "awqbench doctor {model}",
    "NotebookError": "awqbench notebooks check",
    "MemoryLimitError": "awqbench doctor {model}",
    "ClusterError": "awqbench quantize {model} OUT --workers 2",
    "RecordError": "awqbench record -o OTHER_FILE.jsonl",
    "RecordSchemaError": "awqbench record -o OTHER_FILE.jsonl",
    "RecordSealError": "awqbench record -o OTHER_FILE.jsonl",
    "RecordConsistencyError": "awqbench record -o OTHER_FILE.jsonl",
    "RecordDigestError": "awqbench record -o OTHER_FILE.jsonl",
    "EmulatedTimingError": "awqbench record -o OTHER_FILE.jsonl --correctness-only",
    "StaticModelError": "awqbench provenance",
}
_NAMES = "|".join(["AwqbenchError", *_CHECKS])
_PRINTED = re.compile(
    rf"^\W{{0,8}}(?P<home>awqbench\.errors\.)?(?P<name>{_NAMES}): (?P<message>\S.*)$", re.MULTILINE
)
_SENTENCE = re.compile(r"(?<=[.!]) (?=[A-Z])")
_NO_FIX = "The error names the place and the numbers; change what it names."


class OwnError(NamedTuple):
    """An error of the family, taken apart."""

    name: str
    cause: str
    fix: str
    check: str
    message: str

    @property
    def meaning(self) -> str:
        """What this kind of error is, as errors.py says it."""
        return (getattr(errors, self.name).__doc__ or "").strip()


def from_exception(error: errors.AwqbenchError) -> OwnError:
    """Take an exception of the family apart; a subclass counts as its parent."""
    names = [kind.__name__ for kind in type(error).__mro__]
    name = next((name for name in names if name in _CHECKS), "AwqbenchError")
    return _apart(name, str(error))


def find_own(lines: str) -> OwnError | None:
    """Find the last printed error of the family in cleaned lines.

    Other packages have a FormatError too: a bare name counts at the start of a line, if
    the text is no traceback or mentions awqbench.
    """
    is_ours = "awqbench" in lines or "Traceback (most recent call last)" not in lines
    last = None
    for match in _PRINTED.finditer(lines):
        if match["home"] or is_ours:
            last = match
    return _apart(last["name"], last["message"].strip()) if last else None


def _apart(name: str, message: str) -> OwnError:
    """Split a message into cause and fix: its last sentence, or what follows its last ``;``."""
    sentences = _SENTENCE.split(message)
    if len(sentences) > 1:
        cause, fix = " ".join(sentences[:-1]), sentences[-1]
    else:
        cause, _, fix = message.rpartition("; ")
    if not cause:
        cause, fix = message, _NO_FIX
    check = _CHECKS.get(name, "awqbench --help")
    return OwnError(name, cause, fix[:1].upper() + fix[1:], check, message)
