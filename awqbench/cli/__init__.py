"""The command line: parse, call, print.

A command is a thin function in one of the modules here; what it needs is imported inside it,
so that `--help` does not wait for torch. Errors of the family are caught once, in `main`.
"""

from __future__ import annotations

import sys

# Each adds its commands to the application.
from awqbench.cli import (  # noqa: F401
    bench,
    convert,
    doctor,
    explain,
    inspect,
    plan,
    quantizing,
    records,
    reports,
    suggest,
    sweep,
    tensor_parallel,
)
from awqbench.cli.app import USAGE, app
from awqbench.errors import AwqbenchError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        app()
    except AwqbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(USAGE)
