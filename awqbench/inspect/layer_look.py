"""One linear under the glass: its weights, its input, and what a search makes of it."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.quantize.choices.site import choose_site
from awqbench.quantize.choices.table import as_frame
from awqbench.quantize.search import block_weights, search_block
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.stats import SiteRecord, Stats, load_stats

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.quantize.choices.scales import ScaleChoice

# Bins of the histogram in a factor of two.
_BINS_PER_OCTAVE = 2


class LayerLook(NamedTuple):
    """What can be seen of one linear.

    Parameters
    ----------
    name : str
        Module path.
    histogram : DataFrame
        `low`, `high`, `weights`: how many magnitudes lie in a bin; zeros are in none.
    zeros : int
        Weights that are 0.
    channels : DataFrame
        By input channel: `channel`, `input_absmax`, `input_mean`, `weight_absmax`.
    curve : DataFrame
        `alpha` (NaN for no scaling) and `loss` of the site that the linear belongs to; empty
        where no scales were searched.
    row : dict
        Of `SearchResult.table`: `alpha`, `output_error`, `rounding_error`, `clip_gain`, ...
    """

    name: str
    histogram: pd.DataFrame
    zeros: int
    channels: pd.DataFrame
    curve: pd.DataFrame
    row: dict


class Layers:
    """The linears of a model with statistics, looked at one by one; searches are kept.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    stats : Stats or str or Path
        Of this model.

    Raises
    ------
    StatisticsError
        If the statistics are of another model.
    AlreadyQuantizedError
        If the model is quantized.
    """

    def __init__(self, ckpt: Checkpoint | str | Path, stats: Stats | str | Path):
        self.ckpt, self.stats = open_checkpoint(ckpt), load_stats(stats)
        self.ckpt.require_full_precision()
        self.stats.check(self.ckpt)
        self._scales: dict[tuple[str, Settings], ScaleChoice | None] = {}
        self._searched: dict[tuple[str, str, Settings], tuple[dict, list[dict]]] = {}

    @property
    def names(self) -> list[str]:
        """Module paths of the linears, in the order of the statistics."""
        return list(self.stats.manifest["in_features"])

    def checked(self, name: str) -> str:
        """Return a linear's name.

        Raises
        ------
        ParameterError
            If there is no such linear; names the nearest.
        """
        if name not in self.names:
            close = get_close_matches(name, self.names, n=1) or self.names[:1]
            raise ParameterError(f"no linear {name!r} in the statistics; such as {close[0]!r}.")
        return name

    def look(self, name: str, settings: Settings) -> LayerLook:
        """Look at one linear and search its site.

        Parameters
        ----------
        name : str
            Module path.
        settings : Settings
            The search is that of `awqbench.search`, with these settings.

        Returns
        -------
        LayerLook

        Raises
        ------
        ParameterError
            If there is no such linear.
        AlignmentError, NonFiniteError
            As `awqbench.search`.
        """
        block, path, record = self._find(name)
        weights = block_weights(self.ckpt, [record], block)
        row, curve = self._search(block, path, record, weights, settings)
        histogram, zeros = magnitude_histogram(weights[path])
        channels = channel_table(weights[path], record)
        return LayerLook(name, histogram, zeros, channels, as_frame(curve), row)

    def _search(self, block, path, record, weights, settings: Settings) -> tuple[dict, list[dict]]:
        """Search the scales of the site, shared by its linears, then the rest of this one alone."""
        name = f"{block}.{record.site.name}"
        if (name, settings) not in self._scales:
            no_clip = replace(settings, clip=False)
            choice = choose_site(record.site, record.moments, weights, no_clip, name=name)
            self._scales[name, settings] = choice.scales
        if (block, path, settings) not in self._searched:
            alone = record._replace(site=record.site._replace(linears=(path,)))
            scales = {record.site.name: self._scales[name, settings]}
            found = search_block([alone], weights, settings, name=block, scales=scales)
            self._searched[block, path, settings] = (found.rows[0], found.curves)
        return self._searched[block, path, settings]

    def _find(self, name: str) -> tuple[str, str, SiteRecord]:
        self.checked(name)
        for i in range(self.stats.n_blocks):
            block = self.stats.block_name(i)
            path = name.removeprefix(f"{block}.")
            if path == name:
                continue
            for record in self.stats.block(i):
                if path in record.site.linears:
                    return block, path, record
        raise AssertionError(f"{name} is in the manifest and in no block")


def magnitude_histogram(weight: torch.Tensor) -> tuple[pd.DataFrame, int]:
    """Count magnitudes in bins of half a factor of two.

    Parameters
    ----------
    weight : torch.Tensor

    Returns
    -------
    (DataFrame, int)
        `low`, `high`, `weights` from the smallest magnitude to the largest, and how many
        are 0. What is not finite is in no bin.
    """
    import pandas as pd

    magnitude = np.abs(weight.numpy().ravel())
    counted = magnitude[(magnitude > 0) & np.isfinite(magnitude)].astype(np.float64)
    places = np.floor(np.log2(counted) * _BINS_PER_OCTAVE).astype(int)
    first = int(places.min()) if places.size else 0
    counts = np.bincount(places - first)
    edges = 2.0 ** ((first + np.arange(len(counts) + 1)) / _BINS_PER_OCTAVE)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "weights": counts})
    return table, int((magnitude == 0).sum())


def channel_table(weight: torch.Tensor, record: SiteRecord) -> pd.DataFrame:
    """Return the largest and mean input, and the largest weight, of each input channel.

    Parameters
    ----------
    weight : (N, K) torch.Tensor
    record : SiteRecord

    Returns
    -------
    DataFrame
        `channel`, `input_absmax`, `input_mean`, `weight_absmax`.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "channel": np.arange(weight.shape[1]),
            "input_absmax": record.moments.absmax.numpy(),
            "input_mean": record.moments.mean_abs().numpy(),
            "weight_absmax": weight.abs().amax(dim=0).numpy(),
        }
    )
