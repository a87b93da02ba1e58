"""A full-precision model whole, for evaluation."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint


def load_model(
    ckpt: Checkpoint | str | Path = "tiny", *, dtype: str = "float32", device: str = "cpu"
) -> torch.nn.Module:
    """Load a full-precision model with transformers.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
    dtype : {"float32", "bfloat16", "float16"}
        Differences between models are smaller than bfloat16's rounding: measure in float32.
    device : str

    Returns
    -------
    torch.nn.Module
        In eval mode; remote code is never run.

    Raises
    ------
    AlreadyQuantizedError
        If the folder is quantized; `load_quantized` loads those.
    """
    import torch
    import transformers
    from packaging.version import Version

    from awqbench.formats.checkpoint import open_checkpoint

    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    # transformers 4.56 renamed the argument and warns of the old name.
    is_old = Version(transformers.__version__) < Version("4.56")
    options = {"torch_dtype" if is_old else "dtype": getattr(torch, dtype)}
    with _silent_progress():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            ckpt.path, local_files_only=True, **options
        )
    return model.to(device).eval()


@contextmanager
def _silent_progress():
    """Keep transformers' own bar out of notebooks' outputs."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
