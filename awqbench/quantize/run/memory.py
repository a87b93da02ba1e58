"""What a run may keep in memory, and what goes to disk: decided once, from sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import MemoryLimitError
from awqbench.quantize.statistics.chunk import BATCH_SIZE, SUM_WINDOWS, Sketching
from awqbench.quantize.statistics.experts import sketch_rows
from awqbench.sizes import GIB, parse_bytes

if TYPE_CHECKING:
    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.settings import Settings

# Share of the memory that is free now that a run takes without being told.
_SHARE = 0.8
# Files that say how much memory a container may take, of both generations of cgroups.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class MemoryPlan(NamedTuple):
    """How a run fits into its memory.

    Parameters
    ----------
    budget_bytes : int
    stages : dict of str to int
        Peak bytes of each stage, the process itself included, activations not.
    sketch : Sketching
    batch_size : int
        Windows run at a time.
    activation_bytes : int
        Of all hidden states between two blocks.
    keeps_activations : bool
        Whether they stay in memory; otherwise batches are read from the disk.
    """

    budget_bytes: int
    stages: dict[str, int]
    sketch: Sketching
    batch_size: int
    activation_bytes: int
    keeps_activations: bool

    @property
    def peak_bytes(self) -> int:
        """Peak of the whole run, activations included."""
        return max(self.stages.values()) + self.keeps_activations * self.activation_bytes


class BlockSizes(NamedTuple):
    """Sizes of a block.

    Parameters
    ----------
    elements : int
        Of its parameters.
    largest : int
        Elements of the largest linear.
    widest : int
        Channels that its widest linear takes or gives.
    site_widths : dict of str to int
        K of each site.
    """

    elements: int
    largest: int
    widest: int
    site_widths: dict[str, int]


def budget_of(max_memory: int | str | None) -> int:
    """Return the bytes that a run may take, from its parameter or from what is free.

    Raises
    ------
    ParameterError
        If `max_memory` is no size.
    """
    if max_memory is not None:
        return parse_bytes(max_memory, what="max_memory")
    import psutil

    own = psutil.Process().memory_info().rss
    free = [psutil.virtual_memory().available]
    for file in _CGROUP_LIMITS:
        text = file.read_text().strip() if file.is_file() else ""
        if text.isdigit():
            free.append(int(text) - own)
    return int(_SHARE * max(min(free), 0)) + own


def block_sizes(runner: BlockRunner, sites_of: Sequence[Sequence[Site]]) -> list[BlockSizes]:
    """Return the sizes of every block of a model."""
    shapes = runner.linear_shapes()
    found = []
    for i, sites in enumerate(sites_of):
        head = f"{runner.block_name(i)}."
        linears = [shape for name, shape in shapes.items() if name.startswith(head)]
        widths = {site.name: site.in_features for site in sites if site.linears}
        found.append(
            BlockSizes(
                runner.block_elements(i),
                max((out * into for out, into in linears), default=0),
                max((max(shape) for shape in linears), default=0),
                widths,
            )
        )
    return found


def plan_memory(
    runner: BlockRunner,
    sites_of: Sequence[Sequence[Site]],
    shape: tuple[int, int],
    settings: Settings,
    *,
    budget_bytes: int,
    sketch: Sketching | None = None,
    batch_size: int | None = None,
) -> MemoryPlan:
    """Choose sketch, batch and where activations are so that a run fits its budget.

    Fewer windows at a time are tried first, then sketches in place of the widest H.

    Parameters
    ----------
    runner : BlockRunner
    sites_of : sequence of sequence of Site
    shape : (int, int)
        Windows and tokens in a window.
    settings : Settings
    budget_bytes : int
    sketch, batch_size
        Given when they are decided already, as for a run that goes on.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    MemoryLimitError
        If nothing fits; gives the bytes of the largest stage.
    """
    import psutil

    base = psutil.Process().memory_info().rss
    sizes = block_sizes(runner, sites_of)
    widths = sorted({k for block in sizes for k in block.site_widths.values()}, reverse=True)
    sketches = [Sketching()] + [Sketching(above=k - 1) for k in widths if k <= Sketching().above]
    sketches = sketches if sketch is None else [sketch]
    batches = [b for b in range(BATCH_SIZE, 0, -1) if SUM_WINDOWS % b == 0]
    batches = batches if batch_size is None else [batch_size]
    hidden = runner.hidden_size
    activations = shape[0] * shape[1] * hidden * runner.dtype.itemsize
    stages: dict[str, int] = {}
    for candidate in sketches:
        for batch in batches:
            stages = _stages(base, runner, sizes, candidate, (batch, *shape), settings)
            peak = max(stages.values())
            if peak <= budget_bytes:
                keeps = peak + activations <= budget_bytes
                return MemoryPlan(budget_bytes, stages, candidate, batch, activations, keeps)
    worst = max(stages, key=lambda stage: stages[stage])
    raise MemoryLimitError(
        f"{worst} takes {stages[worst] / GIB:.2f} GiB ({base / GIB:.2f} of it the process as it is "
        f"now) even with {batches[-1]} window at a time and sketches of H, and max_memory is "
        f"{budget_bytes / GIB:.2f} GiB. Give at least {stages[worst] / GIB + 0.01:.2f}GiB."
    )


def _stages(
    base: int,
    runner: BlockRunner,
    sizes: Sequence[BlockSizes],
    sketch: Sketching,
    text: tuple[int, int, int],
    settings: Settings,
) -> dict[str, int]:
    """Return the peak of each stage; stages follow one another."""
    batch, n_samples, seq_len = text
    itemsize = runner.dtype.itemsize
    # Sums of further windows are made beside the total.
    copies = 2 if n_samples > SUM_WINDOWS else 1
    tracing, calibration, search = [], [], []
    for block in sizes:
        sums, whole = block_statistics(block.site_widths, sketch)
        widest = max(block.site_widths.values(), default=0)
        # The MLP's three wide tensors, and a float32 copy of one with its magnitudes.
        in_flight = batch * seq_len * block.widest * (3 * itemsize + 8)
        tracing.append(8 * block.elements)
        product = widest * min(widest, -(-widest // 4)) * 4
        calibration.append(itemsize * block.elements + copies * sums + in_flight + product)
        # Weights as stored and twice in float32; H, with a copy in bfloat16; four float32
        # matrices like the largest linear (errors, products); GPTQ factors H in float64.
        factors = 32 * widest**2 if settings.rounding == "gptq" else 2 * widest**2
        search.append((itemsize + 8) * block.elements + sums + factors + whole + 16 * block.largest)
    embedding = 2 * runner.vocabulary * runner.hidden_size * itemsize
    return {
        "reading the embedding": base + embedding,
        "tracing a block": base + max(tracing),
        "calibrating a block": base + max(calibration),
        "searching a block": base + max(search),
    }


def block_statistics(widths: Mapping[str, int], sketch: Sketching) -> tuple[int, int]:
    """Return the bytes kept of a block's sites, and those of the largest H behind a sketch.

    Parameters
    ----------
    widths : mapping of str to int
        K by the name of a site.
    sketch : Sketching
    """
    of_experts = sketch_rows(widths, sketch.rows)
    kept = rebuilt = 0
    for name, k in widths.items():
        rows = of_experts[name]
        by = sketch if rows is None or k > sketch.above else Sketching(0, rows)
        kept += statistics_bytes(k, by)
        rebuilt = max(rebuilt, 4 * k**2 if k > by.above else 0)
    return kept, rebuilt


def statistics_bytes(in_features: int, sketch: Sketching) -> int:
    """Return the bytes kept of one site: H in float32, or a sketch of it.

    Examples
    --------
    >>> statistics_bytes(8192, Sketching()), statistics_bytes(29568, Sketching())
    (268632064, 136958976)
    """
    vectors = 24 * in_features
    if in_features <= sketch.above:
        return 4 * in_features**2 + vectors
    block = 128 if in_features % 128 == 0 else in_features
    return 4 * sketch.rows * in_features + 4 * in_features * block + vectors
