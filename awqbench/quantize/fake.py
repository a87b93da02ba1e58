"""A model that computes with quantized weights without storing them: for sweeps."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.quantize.search import collect_result, make_settings, search_blocks

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import Stats

# Arguments of `search` that are no settings.
_HOW = ("objective", "tokens", "device")


@contextmanager
def fake_quantized(
    model: torch.nn.Module,
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    settings: Settings | None = None,
    **changes,
):
    """Let a full-precision model compute with quantized weights while the context lasts.

    Weights are replaced by Q(W s) / s in place and put back at the end; nothing is
    written, and nothing has to be folded.

    Parameters
    ----------
    model : torch.nn.Module
        The model of `ckpt`, as `load_model` gives it.
    ckpt, stats, settings
        As in `search`.
    **changes
        Fields of `Settings`, `objective`, `tokens` and `device`, as in `search`.

    Yields
    ------
    SearchResult
    """
    import torch

    saved: dict[str, torch.Tensor] = {}
    how = {name: changes.pop(name) for name in _HOW if name in changes}
    settings = make_settings(settings, **changes)
    blocks = []
    try:
        with torch.no_grad():
            for block in search_blocks(ckpt, stats, settings, **how):
                blocks.append(block._replace(effective={}))
                for path, effective in block.effective.items():
                    weight = model.get_submodule(f"{block.name}.{path}").weight
                    saved[f"{block.name}.{path}"] = weight.detach().clone()
                    weight.copy_(effective.to(weight.dtype))
        yield collect_result(settings, blocks)
    finally:
        with torch.no_grad():
            for path, weight in saved.items():
                model.get_submodule(path).weight.copy_(weight)
