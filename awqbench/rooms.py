"""Rooms that can be called: `awqbench.gemm` is a package and also its main function.

Importing any module of a package binds the package's name in its parent, over a function
of the same name; a package that can be called is both.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


def make_callable(room: str, module: str, function: str) -> None:
    """Let a package be called like one of its functions.

    Parameters
    ----------
    room : str
        Name of the package, imported already.
    module : str
        Where the function is; imported at the first call.
    function : str
    """

    class Room(ModuleType):
        def __call__(self, *args, **kwargs):
            return getattr(import_module(module), function)(*args, **kwargs)

    sys.modules[room].__class__ = Room
