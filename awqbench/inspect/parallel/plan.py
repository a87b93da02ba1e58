"""Does a quantized model split over ranks? Every size, group size and engine, before any work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.inspect.parallel.engine_rules import ENGINES, broken_rules, require_engine
from awqbench.inspect.parallel.match_linears import with_names_of
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.parallel.padding_plan import padding_plan
from awqbench.inspect.parallel.shape_types import ModelShapes
from awqbench.inspect.parallel.split_checks import CONFIG, Broken

if TYPE_CHECKING:
    import pandas as pd

TP_SIZES = (1, 2, 4, 8)
GROUP_SIZES = (128, 64, 32)
COLUMNS = (
    "tp_size",
    "group_size",
    "engine",
    "fits",
    "layer",
    "rule",
    "number",
    "multiple_of",
    "detail",
    "error_text",
    "fix",
    "n_broken",
)


def plan_tensor_parallel(
    config_or_ckpt: Checkpoint | Mapping | str | Path,
    tp_sizes: Iterable[int] = TP_SIZES,
    group_sizes: Iterable[int] = GROUP_SIZES,
    engine: str | None = None,
) -> pd.DataFrame:
    """Tell for every tensor parallel size, group size and engine whether a model fits.

    What is not quantized is not judged: the embedding and the output layer, routers, and
    vision towers.

    Parameters
    ----------
    config_or_ckpt : Checkpoint, mapping, str or Path
        A model folder, the content of a config.json, or a path as `read_config` takes. No
        weight is read.
    tp_sizes, group_sizes : iterable of int
        A group size of -1 stands for whole rows.
    engine : str, optional
        A key of `awqbench.inspect.parallel.engine_rules.ENGINES`; all by default.

    Returns
    -------
    DataFrame
        A row for each combination: `tp_size`, `group_size`, `engine`, `fits`, and of the
        first rule that is broken `layer`, `rule`, `number` and what it has to be a
        `multiple_of` (integers, missing where it fits), both in words in `detail`, the
        engine's own `error_text`, a `fix` that was checked, and `n_broken` rules in all.

    Raises
    ------
    FormatError
        If the config lacks keys, or does not agree with the weights' headers.
    ParameterError
        If a size is not positive, or there is no such engine.

    Examples
    --------
    >>> qwen2_72b = dict(hidden_size=8192, intermediate_size=29568, num_attention_heads=64)
    >>> plan = plan_tensor_parallel(qwen2_72b, (1, 4), (128,), "vllm")
    >>> plan[["tp_size", "fits", "layer", "number"]].fillna(0).values.tolist()[1]
    [4, False, 'model.layers.*.mlp.down_proj', 7392]
    >>> plan["fix"][1].split(";")[0]
    'pad intermediate_size 29568 to 29696 (awqbench pad MODEL OUT --tp 4 --group-size 128)'
    """
    import pandas as pd

    shapes = shapes_of(config_or_ckpt)
    engines = list(ENGINES) if engine is None else [require_engine(engine).name]
    tp_sizes, group_sizes = tuple(tp_sizes), tuple(group_sizes)
    rows = [
        _row(shapes, tp_size, group_size, name, group_sizes)
        for name in engines
        for tp_size in tp_sizes
        for group_size in group_sizes
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"number": "Int64", "multiple_of": "Int64"})


def _row(shapes: ModelShapes, tp_size: int, group_size: int, engine: str, group_sizes) -> tuple:
    broken = broken_rules(shapes, tp_size, group_size, engine=engine)
    place = (tp_size, group_size, engine, not broken)
    if not broken:
        return (*place, "", "", None, None, "", "", "", 0)
    first = broken[0]
    fix = _fix(shapes, broken, tp_size, group_size, engine, group_sizes)
    rule = (first.layer, first.rule, first.number, first.multiple_of, first.detail)
    return (*place, *rule, first.error_text, fix, len(broken))


def _fix(shapes, broken: list[Broken], tp_size, group_size, engine, group_sizes) -> str:
    """Say what makes it fit; each way was put to the same rules."""
    if broken[0].layer == CONFIG:
        fitting = [n for n in range(1, tp_size) if not _model_rules(shapes, n, group_size, engine)]
        ranks = ", ".join(map(str, fitting[-4:]))
        return f"padding cannot help: choose a tp_size that divides, such as {ranks}"
    ways = []
    plan = padding_plan(shapes, tp_size, group_size, engine=engine)
    if plan.fits:
        command = f"awqbench pad MODEL OUT --tp {tp_size} --group-size {group_size}"
        ways.append(f"{plan.describe()} ({command})")
    smaller = [
        size
        for size in sorted({*group_sizes, *GROUP_SIZES}, reverse=True)
        if size not in (group_size, -1) and not broken_rules(shapes, tp_size, size, engine=engine)
    ]
    if smaller:
        ways.append(f"quantize with group_size {smaller[0]}")
    if all(b.linear is not None and b.linear.is_expert for b in broken):
        ways.append("keep experts whole (--enable-expert-parallel)")
    if not ways:
        ways = [f"padding cannot help: {(plan.remaining or broken)[0].sentence}; lower tp_size"]
    return "; or ".join(ways)


def _model_rules(shapes, tp_size: int, group_size: int, engine: str) -> list[Broken]:
    broken = broken_rules(shapes, tp_size, group_size, engine=engine)
    return [b for b in broken if b.layer == CONFIG]


def shapes_of(config_or_ckpt: Checkpoint | Mapping | str | Path) -> ModelShapes:
    """List a model's linears from its config, named as in its folder where there is one.

    Raises
    ------
    FormatError
        As `model_shapes`, and if the headers of the weights have other shapes.
    """
    if isinstance(config_or_ckpt, str | Path):
        config_or_ckpt = read_config(config_or_ckpt)
    if isinstance(config_or_ckpt, Mapping):
        return model_shapes(config_or_ckpt)
    return with_names_of(model_shapes(config_or_ckpt.config), config_or_ckpt)


def read_config(source: str | Path) -> Checkpoint | dict:
    """Open what a plan needs: a model folder, or a config.json alone.

    Parameters
    ----------
    source : str or Path
        ``"tiny"``, a folder with or without weights, a config.json, or a hub id, of which
        the config alone is fetched.

    Raises
    ------
    FormatError
        If there is no config there.
    """
    path = Path(source).expanduser()
    if str(source) == "tiny" or (path.is_dir() and any(path.glob("*.safetensors"))):
        return open_checkpoint(source)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        path = _download_config(str(source))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} is not a JSON object.")
    return config


def _download_config(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, "config.json"))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FormatError(
            f"{source!r} is neither a folder or config.json here nor a model that the hub could "
            f"give ({type(error).__name__})."
        ) from error


def tensor_parallel_fit(
    ckpt_or_config: Checkpoint | Mapping,
    tp_sizes: Iterable[int] = TP_SIZES,
    group_sizes: Iterable[int] = GROUP_SIZES,
) -> pd.DataFrame:
    """Tell in one column which group sizes a 4-bit AWQ model can have over so many ranks.

    Parameters
    ----------
    ckpt_or_config, tp_sizes, group_sizes
        As in `plan_tensor_parallel`.

    Returns
    -------
    DataFrame
        `tp_size`, `group_size`, `fits`, `reason`: the first rule of the plain AWQ kernel
        that is broken, of the whole model or else by the layer's name, with its number and
        how many more there are; empty where it fits.
    """
    import pandas as pd

    shapes, group_sizes = shapes_of(ckpt_or_config), tuple(group_sizes)
    rows = []
    for tp_size in tp_sizes:
        for group_size in group_sizes:
            broken = broken_rules(shapes, tp_size, group_size, engine="awq")
            broken.sort(key=lambda item: (item.layer != CONFIG, item.layer))
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            reason = broken[0].sentence + more if broken else ""
            rows.append((tp_size, group_size, not broken, reason))
    return pd.DataFrame(rows, columns=["tp_size", "group_size", "fits", "reason"])


def tensor_parallel_problems(
    ckpt_or_config: Checkpoint | Mapping, tp_size: int, group_size: int, *, engine: str = "awq"
) -> list[str]:
    """List every rule that a tensor parallel size and group size break, with layer and number.

    Parameters
    ----------
    ckpt_or_config : Checkpoint or mapping
    tp_size, group_size : int
    engine : str

    Returns
    -------
    list of str
    """
    broken = broken_rules(shapes_of(ckpt_or_config), tp_size, group_size, engine=engine)
    return [item.sentence for item in broken]
