"""The IPython magic: ``%load_ext awqbench``, then ``%awqbench explain`` after an error.

IPython itself is not imported: it hands its shell over.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awqbench.inspect.explain import Explanation

_USAGE = (
    "%awqbench explain explains the last exception, %awqbench explain TEXT a text, "
    "and %%awqbench explain the rest of its cell."
)


def load_ipython_extension(shell: Any) -> None:
    """Register the magic; IPython calls this on ``%load_ext awqbench``.

    Parameters
    ----------
    shell : IPython.core.interactiveshell.InteractiveShell
    """
    shell.register_magic_function(awqbench_magic, "line_cell", "awqbench")


def awqbench_magic(line: str, cell: str | None = None) -> Explanation | None:
    """Explain the session's last exception, or a text.

    Parameters
    ----------
    line : str
        ``explain``, and a text after it if it is not the last exception that is meant.
    cell : str, optional
        The text, of ``%%awqbench explain``.

    Returns
    -------
    Explanation or None
        None, and a line in print, where there is nothing to explain.
    """
    from awqbench.inspect.explain import explain

    verb, _, text = line.strip().partition(" ")
    text = "\n".join(part for part in (text.strip(), cell or "") if part.strip())
    if verb != "explain":
        print(_USAGE)
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if not text and error is None:
        print("No exception has been raised in this session; give a text instead. " + _USAGE)
        return None
    return explain(text or error)
