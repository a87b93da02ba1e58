"""Can the model be taken apart block by block? Tried on the skeleton, without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import FormatError, TraceError
from awqbench.inspect.doctor.findings import CARE, NO, Finding, listed, roles
from awqbench.inspect.health import is_linear_weight
from awqbench.quantize.choices.dense import keeps_dense

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.model import BlockRunner

# Below this share of the parameters the name "quantized model" says too much.
_MOST_OF_THE_MODEL = 0.5


class Anatomy(NamedTuple):
    """What a model is made of.

    Parameters
    ----------
    runner : BlockRunner or None
        None if the model cannot be run block by block, for the reason `problem`.
    linears : dict of str to (int, int)
        Linears that would be quantized: (out_features, in_features) by module path. By the
        names of the tensors where there is no runner.
    problem : str
    """

    runner: BlockRunner | None
    linears: dict[str, tuple[int, int]]
    problem: str = ""

    def block_linears(self, i: int) -> dict[str, tuple[int, int]]:
        """Return the linears of one block."""
        head = f"{self.runner.block_name(i)}."
        return {name: shape for name, shape in self.linears.items() if name.startswith(head)}

    def describe(self, ckpt: Checkpoint) -> str:
        """Return one phrase for the card."""
        names = ckpt.config.get("architectures")
        name = names[0] if isinstance(names, list) and names else "no architecture"
        head = f"{name} (model_type {ckpt.config.get('model_type')!r})"
        if self.runner is None:
            return f"{head}, cannot be traced"
        n_blocks = self.runner.n_blocks
        kinds = len({self.runner.block_kind(i) for i in range(n_blocks)})
        blocks = f"{n_blocks} block{'s' if n_blocks > 1 else ''}"
        return f"{head}, runs as {blocks} of {kinds} kind{'s' if kinds > 1 else ''}"


def anatomy_of(ckpt: Checkpoint) -> Anatomy:
    """Build the model's skeleton and run it with its blocks replaced.

    A few norms are read, no block, no embedding.
    """
    from awqbench.model import BlockRunner

    try:
        runner = BlockRunner(ckpt)
    except (TraceError, FormatError) as error:
        found = {
            name.removesuffix(".weight"): info.shape
            for name, info in ckpt.tensors.items()
            if is_linear_weight(name, len(info.shape)) and ".weight" in name and "." in name
        }
        problem = str(error).removeprefix(f"{ckpt.path.name}: ").rstrip(".")
        return Anatomy(None, found, problem)
    shapes = runner.linear_shapes()
    return Anatomy(runner, {name: s for name, s in shapes.items() if not keeps_dense(name, s)})


def architecture_findings(ckpt: Checkpoint, anatomy: Anatomy) -> Iterator[Finding]:
    """Say what of the architecture stands in the way."""
    if anatomy.runner is None:
        yield Finding(
            NO,
            "architecture",
            anatomy.problem,
            "upgrade transformers (pip install -U transformers); if the folder brings its own code "
            "(modeling_*.py), look for a conversion to an architecture of transformers",
        )
        return
    missing = _missing(ckpt, anatomy)
    if missing:
        counts = [f"{role} ({n})" for role, n in roles(missing).items()]
        yield Finding(
            NO,
            "architecture",
            f"{len(missing)} tensors of the blocks are not in the folder: {listed(counts)}",
            "download the folder again; an index that names every shard lies in "
            "model.safetensors.index.json",
        )
    total = sum(info.size for info in ckpt.tensors.values())
    inside = sum(out * into for out, into in anatomy.linears.values())
    if total and inside / total < _MOST_OF_THE_MODEL:
        yield Finding(
            CARE,
            "architecture",
            f"only {inside / total:.0%} of the {total / 1e9:.2f} billion parameters are in "
            "linears of the blocks; embeddings, and experts that are held as one tensor, stay as "
            "they are",
            "expect a smaller gain in size; `awqbench inspect MODEL --no-scan` lists the bytes",
        )


def _missing(ckpt: Checkpoint, anatomy: Anatomy) -> list[str]:
    names = [f"{module}.weight" for module in anatomy.linears]
    stored = [anatomy.runner.stored_name(name) or name for name in names]
    return [name for name in stored if name not in ckpt.tensors]
