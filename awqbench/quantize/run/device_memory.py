"""Memory of a GPU in a search: how much a block needs, and an error that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import MemoryLimitError
from awqbench.quantize.choices.rounding import row_numbers
from awqbench.sizes import GIB

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import SiteRecord


class SiteNeed(NamedTuple):
    """The site of a block that needs most memory, and how many bytes."""

    name: str
    in_features: int
    bytes: int


def largest_need(
    records: Iterable[SiteRecord], rows: Mapping[str, int], settings: Settings
) -> SiteNeed:
    """Estimate the memory that the search of a block takes on its device.

    One site at a time is there: H, the weights of its linears in float32, and what is
    computed from them. Libraries of matrix routines take some hundred MB more.

    Parameters
    ----------
    records : iterable of SiteRecord
    rows : mapping of str to int
        Output channels of linears, by path in the block; sites of others are passed over.
    settings : Settings

    Returns
    -------
    SiteNeed
    """
    needs = [SiteNeed("", 0, 0)]
    for site, _ in records:
        k, of_linears = site.in_features, [rows[path] for path in site.linears if path in rows]
        if not of_linears:
            continue
        every, largest, square = sum(of_linears) * k, max(of_linears) * k, k * k
        part = row_numbers(k, max(of_linears))
        sampled = min(sum(of_linears), settings.max_rows) * k
        blocks = k * (k if settings.group_size == -1 else settings.group_size)
        # The coefficients were counted on tensors that say how many bytes of them are alive.
        stages = [
            # Weights, each and one below the other; magnitudes, and their shares of a group's.
            16 * every + 4 * square,
            # Weights both ways; sampled rows, a candidate's errors and products; H twice.
            8 * every + 24 * sampled + 6 * square,
            # Weights both ways, one of them scaled; a part's errors and products; blocks of H.
            8 * every + 4 * largest + 20 * part + 4 * square + 12 * blocks,
            # To measure: weight, effective weight, errors and products; H twice.
            18 * largest + 6 * square,
        ]
        if settings.rounding == "gptq":
            # H, also scaled; in float64 H, damped, its factor, its inverse and the factor of
            # that. Then the weight as it is, as it becomes, and its codes.
            stages += [52 * square, 8 * square + 18 * largest]
        needs.append(SiteNeed(site.name, k, max(stages)))
    return max(needs, key=lambda need: need.bytes)


@contextmanager
def lack_of_memory_named(
    device: torch.device, need: Callable[[], SiteNeed], *, name: str
) -> Iterator[None]:
    """Raise a `MemoryLimitError` with numbers where a GPU's memory does not suffice.

    Parameters
    ----------
    device : torch.device
    need : callable
        Gives the `largest_need` of the block.
    name : str
        Path of the block.
    """
    try:
        yield
    except RuntimeError as error:
        if device.type == "cpu" or not _is_lack_of_memory(error):
            raise
        most = need()
        raise MemoryLimitError(
            f"{name}: its search takes about {most.bytes / GIB:.2f} GiB on {device} (at "
            f"{most.name}, {most.in_features} input channels), which has {_free(device)}. Search "
            "on the CPU, device='cpu' (--device cpu), or let fewer processes share the GPU "
            "(--workers)."
        ) from error


def _is_lack_of_memory(error: RuntimeError) -> bool:
    """Tell by class or, for errors of the libraries that torch calls, by text."""
    import torch

    texts = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def _free(device: torch.device) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return f"{total / GIB:.2f} GiB, {free / GIB:.2f} of them free"
