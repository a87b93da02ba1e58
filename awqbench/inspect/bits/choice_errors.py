"""What each linear would lose and weigh with each choice of bits and group size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import AlignmentError, FormatError, ParameterError
from awqbench.formats.config.limits import check_layout, check_size
from awqbench.inspect.placement.packed_sizes import PackedForm, packed_tensors
from awqbench.model_experts import name_in_model
from awqbench.progress import progress_bar
from awqbench.quantize.choices.rounding import output_error
from awqbench.quantize.search import block_weights, search_block

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import SiteRecord, Stats


class Choice(NamedTuple):
    """Bits and group size of a linear; bits None leaves it in full precision."""

    bits: int | None
    group_size: int

    def __str__(self) -> str:
        """Return such as ``4 bits, 128``."""
        if self.bits is None:
            return "skip"
        return f"{self.bits} bits, {'rows' if self.group_size == -1 else self.group_size}"

    def of(self, settings: Settings) -> Settings:
        """Return settings with this width and group size; their rules, which skip, stay."""
        return replace(settings, bits=self.bits, group_size=self.group_size)


SKIP = Choice(None, -1)


def make_choices(choices: Iterable, settings: Settings) -> tuple[Choice, ...]:
    """Return choices from pairs of bits and group size, and ``"skip"``.

    Raises
    ------
    ParameterError
        If one is neither, there are none, or one comes twice.
    FormatError
        If the layout cannot hold one, or not several of them in one folder.
    """
    found = []
    for item in choices:
        if item == "skip":
            found.append(SKIP)
            continue
        if not isinstance(item, Sequence) or len(item) != 2:
            raise ParameterError(f"{item!r} is no choice; give (bits, group_size), or 'skip'.")
        found.append(Choice(*item))
        check_layout(settings.layout, found[-1].of(settings))
    packed = [choice for choice in found if choice != SKIP]
    if not packed or len(set(found)) < len(found):
        raise ParameterError(f"choices are {found}; give bits and group sizes, each once.")
    if settings.layout.startswith("awq-") and len(packed) > 1:
        raise FormatError(
            f"an AutoAWQ folder has one width and group size for all linears, and the choices have "
            f"{len(packed)}. Choose layout='compressed-tensors' or 'gptq-v2'."
        )
    return tuple(found)


def choice_errors(
    ckpt: Checkpoint,
    stats: Stats,
    choices: tuple[Choice, ...],
    settings: Settings,
    *,
    with_scales: bool = False,
) -> pd.DataFrame:
    """Predict the output error of every linear with every choice; the model is not run.

    Block by block, so that one block's weights and statistics are in memory.

    Parameters
    ----------
    ckpt : Checkpoint
    stats : Stats
    choices : tuple of Choice
    settings : Settings
        How it is searched; which linears are left out.
    with_scales : bool
        Search channel scales too. Without them errors are larger, in nearly the same
        proportion for every choice.

    Returns
    -------
    DataFrame
        `linear` (full path), `choice` (index), `bits`, `group_size`, `n_weights`,
        `weight_bytes` as stored, `dense_bytes` of full precision, `output_error` (squared, as
        a share of the output's energy), `impact` (see `Added`). Choices that a linear's
        shape does not allow have no row.

    Raises
    ------
    AlignmentError
        If a linear's shape allows no choice.
    """
    import pandas as pd

    if not with_scales:
        settings = replace(settings, scales="none")
    stored = {name_in_model(tensor): info for tensor, info in ckpt.tensors.items()}
    rows: list[dict] = []
    stream = 0.0
    for i in progress_bar(range(stats.n_blocks), "errors of choices", unit="block"):
        records, name = stats.block(i), stats.block_name(i)
        weights = block_weights(ckpt, records, name)
        added, stream = added_energies(records, output_energies(records, weights), stream)
        for index, errors in _errors_of(records, weights, choices, settings, name).items():
            for path, error in errors.items():
                linear, shape = f"{name}.{path}", tuple(weights[path].shape)
                dense = stored[f"{linear}.weight"].nbytes
                choice = choices[index]
                rows.append(
                    {
                        "linear": linear,
                        "choice": index,
                        "bits": choice.bits,
                        "group_size": choice.group_size,
                        "n_weights": weights[path].numel(),
                        "weight_bytes": _packed_bytes(shape, choice, settings, dense),
                        "dense_bytes": dense,
                        "output_error": error,
                        "added": added[path],
                    }
                )
    columns = {"impact": [row.pop("added").impact(stream) for row in rows]}
    return pd.DataFrame(rows).assign(**columns)


def output_energies(
    records: list[SiteRecord], weights: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Return the sum of squared outputs of each linear over the calibration text."""
    found = {}
    for site, moments in records:
        gram = moments.gram()
        for path in site.linears:
            found[path] = float(output_error(weights[path], gram).double().sum())
    return found


class Added(NamedTuple):
    """What the module of a linear adds to the residual stream.

    `energy` is that of the module's last linear, `stream` all that modules have added up to
    and with this one.
    """

    energy: float
    stream: float

    def impact(self, end: float) -> float:
        """Return the geometric mean of its shares in the stream here and at its `end`."""
        return self.energy / math.sqrt(self.stream * end) if self.stream > 0 else 0.0


def added_energies(
    records: list[SiteRecord], energies: dict[str, float], stream: float
) -> tuple[dict[str, Added], float]:
    """Return what a relative error of each linear's output reaches.

    The last linear of a module, such as o_proj or down_proj, adds its output to the residual
    stream; a relative error of the linears before it becomes about the same relative error of
    that output. What it is worth is the output's share of the stream.

    Parameters
    ----------
    records : list of SiteRecord
        Of one block, in the order in which the linears run.
    energies : dict of str to float
        Of `output_energies`.
    stream : float
        Energy that the blocks before have added to the stream.

    Returns
    -------
    (dict of str to Added, float)
        By path, and the stream's energy after the block. The embedding's energy is left out:
        it is not in the statistics.
    """
    order = [path for site, _ in records for path in site.linears]
    writer_in = {path.rpartition(".")[0]: path for path in order}  # the last one stays
    added = {}
    for path in order:
        module = path.rpartition(".")[0]
        if writer_in[module] == path:
            stream += energies[path]
            added[module] = Added(energies[path], stream)
    return {path: added[path.rpartition(".")[0]] for path in order}, stream


def _errors_of(
    records: list[SiteRecord],
    weights: dict[str, torch.Tensor],
    choices: tuple[Choice, ...],
    settings: Settings,
    name: str,
) -> dict[int, dict[str, float]]:
    """Return output errors by choice and path; a linear that is never quantized has none."""
    shapes = {p: w.shape for p, w in weights.items() if settings.converts(f"{name}.{p}")}
    fitting = {p: _fitting(f"{name}.{p}", s, choices, settings) for p, s in shapes.items()}
    found: dict[int, dict[str, float]] = {}
    for index, choice in enumerate(choices):
        mine = {path: weights[path] for path in shapes if index in fitting[path]}
        if choice != SKIP:
            rows = search_block(records, mine, choice.of(settings), name=name).rows
            found[index] = {row["linear"]: row["output_error"] for row in rows}
    if SKIP in choices:
        quantized = dict.fromkeys(path for errors in found.values() for path in errors)
        found[choices.index(SKIP)] = dict.fromkeys(quantized, 0.0)
    return found


def _fitting(name: str, shape, choices: tuple[Choice, ...], settings: Settings) -> set[int]:
    """Return the choices that a linear's shape allows."""
    found, refusal = set(), None
    for index, choice in enumerate(choices):
        try:
            if choice != SKIP:
                choice.of(settings).group_size_for(shape[1], name=name)
                check_size(settings.layout, *shape, name=name)
            found.add(index)
        except AlignmentError as error:
            refusal = error
    if not found:
        raise refusal
    return found


def _packed_bytes(shape, choice: Choice, settings: Settings, dense_bytes: int) -> int:
    if choice == SKIP:
        return dense_bytes
    form = PackedForm(
        settings.layout,
        choice.bits,
        choice.group_size,
        settings.zero_point,
        settings.scale_dtype,
    )
    return sum(part.nbytes for part in packed_tensors(*shape, form).values())
