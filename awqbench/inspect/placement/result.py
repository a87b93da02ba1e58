"""A placement: the device map, what it puts where, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from awqbench.inspect.placement.budgets import unit_for

if TYPE_CHECKING:
    import pandas as pd

_BYTES = ("budget", "reserve", "weight", "kv", "free")


@dataclass(frozen=True, repr=False)
class Placement:
    """Where the modules of a model go.

    Parameters
    ----------
    device_map : dict of str to str or int
        For ``from_pretrained(device_map=...)``: every block, and every module outside the
        blocks, to its device.
    table : DataFrame
        A row for each device: `device`, `is_offload`, `budget_bytes`, `reserve_bytes` (on
        the first with room for the largest offloaded piece), `weight_bytes`, `kv_bytes`,
        `free_bytes` (negative where it is overfull), `share` of the budget that is taken,
        `n_blocks`, `first` and `last` module.
    modules : DataFrame
        A row for each piece, in the order in which they run: `module`, `kind`, `device`,
        `weight_bytes`, `kv_bytes`.
    fits : bool
    verdict : str
        One sentence: whether it fits, where it is tightest, and what to change if not.
    max_context : int
        The longest context that fits with this batch; -1 if not even the weights do.
    case : dict
        `model`, `how`, `context`, `batch`, `strategy`, `kv_dtype`.
    """

    device_map: dict[str, str | int]
    table: pd.DataFrame
    modules: pd.DataFrame
    fits: bool
    verdict: str
    max_context: int
    case: dict

    @property
    def title(self) -> str:
        """The case in one line."""
        case = self.case
        return (
            f"{case['model']} ({case['how']}), context {case['context']:,}, "
            f"batch {case['batch']}, {case['strategy']}"
        )

    def table_gib(self) -> pd.DataFrame:
        """Return the table for people: sizes in GiB, or in MiB for small models."""
        name, unit = unit_for(self.table["weight_bytes"].max())
        shown = self.table[["device"]].astype(str)
        for column in _BYTES:
            shown[f"{column} {name}"] = (self.table[f"{column}_bytes"] / unit).round(2)
        shown["share"] = [f"{share:.0%}" for share in self.table["share"]]
        shown["blocks"] = self.table["n_blocks"]
        return shown.assign(first=self.table["first"], last=self.table["last"])

    def as_dict(self) -> dict:
        """Return everything as JSON-ready values."""
        return {
            **self.case,
            "fits": self.fits,
            "verdict": self.verdict,
            "max_context": self.max_context,
            "device_map": self.device_map,
            "devices": self.table.to_dict(orient="records"),
            "modules": self.modules.to_dict(orient="records"),
        }

    def __str__(self) -> str:
        """Write the verdict and the table."""
        return f"{self.title}\n{self.verdict}\n\n{self.table_gib().to_string(index=False)}"

    __repr__ = __str__  # not the device map of every block

    def _repr_html_(self) -> str:
        from html import escape

        table = self.table_gib().to_html(index=False, border=0)
        return f"<p>{escape(self.title)}<br><b>{escape(self.verdict)}</b></p>{table}"
