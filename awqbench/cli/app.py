"""The Typer application, and what its commands share.

Exit status: 0 done, 1 the answer is no (a notebook failed, a check found something), 2 a
mistake in the call, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="awqbench",
    help="A Jupyter-first workbench for weight-only quantization of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[str, typer.Argument(help="A model folder, a hub id, or 'tiny'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print numbers for machines.")]
