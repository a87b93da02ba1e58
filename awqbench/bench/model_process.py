"""The parent's side of `model_worker`: start it, order a generation, say why it died."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from awqbench import errors
from awqbench.bench.model_worker import Generation


class ModelProcess:
    """A model in a process of its own; use as a context manager.

    Parameters
    ----------
    folder : str
    backend : str
    dtype : str or None
    threads : int

    Attributes
    ----------
    facts : dict
        What loading took, as `model_worker.load` tells it.
    peak_bytes : int
        Most resident memory so far.

    Raises
    ------
    AwqbenchError
        The one that loading raised there.
    BackendError
        If the process died; with the last line that it wrote.
    """

    def __init__(self, folder: str, backend: str, *, dtype: str | None, threads: int) -> None:
        self.backend, self.peak_bytes = backend, 0
        setting = {"folder": folder, "backend": backend, "dtype": dtype, "threads": threads}
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "awqbench.bench.model_worker", json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C is for the parent, which then ends this one.
            start_new_session=True,
        )
        try:
            self.facts = self._answer()
        except BaseException:  # Ctrl-C while it loads, too
            self.close()
            raise

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def generate(self, prompt_tokens: int, new_tokens: int) -> Generation:
        """Let it generate once and return the times."""
        order = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        with suppress(BrokenPipeError):  # it died: the answer says so
            print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._answer()
        self.peak_bytes = answer.pop("peak_bytes")
        return Generation(**answer)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            written = self._log.read().strip().splitlines() or ["it wrote nothing"]
            hint = " It was killed, which is what happens out of memory." if code == -9 else ""
            raise errors.BackendError(
                f"the process of backend {self.backend!r} ended with status {code}: "
                f"{written[-1]}.{hint}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["text"])
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
