"""The command that explains an error text."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, JsonOption, app


@app.command()
def explain(
    text: Annotated[
        str | None,
        typer.Argument(help="An error text, a file that holds one, or '-' for standard input."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an error text or traceback means: cause, fix, and a call that checks it.

    Without TEXT it reads standard input: `vllm serve MODEL 2>&1 | awqbench explain`. The exit
    status is 0 if the text is known and 1 if it is not.
    """
    from awqbench.inspect.explain import explain as explain_text

    found = explain_text(_read(text))
    typer.echo(json.dumps(asdict(found), indent=1, ensure_ascii=False) if as_json else str(found))
    if not found.known:
        raise typer.Exit(FAILED)


def _read(text: str | None) -> str:
    """Return the text itself, a file's content, or standard input."""
    from awqbench.errors import ParameterError

    if text is None or text == "-":
        if sys.stdin.isatty():
            typer.echo(
                "paste the error text, then press Ctrl-D (Windows: Ctrl-Z, Enter):", err=True
            )
        # Logs hold whatever programs print: what is no UTF-8 must not stop the reading.
        text = typer.get_binary_stream("stdin").read().decode("utf-8", errors="replace")
    elif os.path.isfile(text):
        text = Path(text).read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise ParameterError("the error text is empty; give it as argument or on standard input.")
    return text
