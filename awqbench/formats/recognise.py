"""What a folder or a file is, whether or not its weights can be read."""

from __future__ import annotations

from pathlib import Path

from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.config.foreign import foreign_by_files
from awqbench.formats.config.quantization import Quantization


def recognise(source: str | Path) -> Quantization | None:
    """Say how a folder or file is quantized, readable or not.

    Parameters
    ----------
    source : str or Path
        A model folder, or a single file of another tool, such as GGUF.

    Returns
    -------
    Quantization or None
        None for a full-precision folder.

    Raises
    ------
    FormatError
        As `open_checkpoint`.
    """
    return foreign_by_files(Path(source).expanduser()) or open_checkpoint(source).quantization
