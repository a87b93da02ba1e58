"""Fold and quantize one block: from its weights and statistics to the tensors to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import OverflowCastError
from awqbench.formats.layouts.table import write_linear
from awqbench.quantize.choices.dense import is_quantized
from awqbench.quantize.choices.mixed import choose_linears, round_linears
from awqbench.quantize.choices.scales_shared import shared_scales
from awqbench.quantize.choices.site import measure
from awqbench.quantize.choices.table import alarms, curve_rows, linear_row
from awqbench.quantize.folds.apply import fold_scales, joined

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.choices.site import SiteChoice
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import SiteRecord


class QuantizedBlock(NamedTuple):
    """A block's tensors as they are to be written, by block-relative path, and its tables."""

    tensors: dict[str, torch.Tensor]
    rows: list[dict]
    curves: list[dict]


def quantize_block(
    tensors: dict[str, torch.Tensor],
    records: list[SiteRecord],
    settings: Settings,
    *,
    name: str,
    device: torch.device | str = "cpu",
) -> QuantizedBlock:
    """Choose, fold and round all sites of a block.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        All of the block's tensors as stored, by block-relative path.
    records : list of SiteRecord
    settings : Settings
    name : str
        Path of the block.
    device : torch.device or str
        To search on, one site at a time; the block itself, folds and packing are on the CPU.

    Returns
    -------
    QuantizedBlock
        In the layout of the settings; what is not quantized keeps its dtype.

    Raises
    ------
    NonFiniteError, OverflowCastError, AlignmentError, FormatError
        As `choose_site`, `round_site` and `layouts.write_linear`.
    """
    import torch

    wide = {path: t.float() for path, t in tensors.items() if t.is_floating_point()}
    original = dict(wide)
    sites = [record.site for record in records]
    weights_of = {site.name: _weights(site, original, settings, name) for site in sites}
    every = {path: weight for weights in weights_of.values() for path, weight in weights.items()}
    shared = shared_scales(records, every, settings, name=name, device=device)
    choices: dict[str, SiteChoice] = {}
    for site, moments in records:
        weights = weights_of[site.name]
        if not weights:
            continue
        given = shared.get(site.name)
        near = moments.to(device)
        choice = choose_linears(site, near, weights, settings, block=name, scales=given)
        if site.prev_op is not None:
            scales = storable_scales(site, choice.channel_scales, tensors)
            choice = choice._replace(channel_scales=scales)
        choices[site.name] = choice
    for unit in joined(sites):
        mine = [s.name for s in sites if (s.shares or s.name) == unit.name and s.name in choices]
        if mine and unit.prev_op is not None:
            fold_scales(wide, unit, choices[mine[0]].channel_scales.numpy())
    factors = row_factors(sites, choices, original)
    result = QuantizedBlock({}, [], [])
    for site, moments in records:
        if site.name not in choices:
            continue
        choice = choices[site.name]
        weights = _weights(site, wide, settings, name)
        result.curves.extend(curve_rows(site, choice))
        near = moments.to(device)
        for path, linear in round_linears(choice, near, weights, settings, name=name).items():
            effective = torch.from_numpy(linear.packed.dequantize()) / choice.channel_scales
            if path in factors:
                effective /= factors[path][:, None]
            own = settings.for_linear(f"{name}.{path}")
            error = measure(original[f"{path}.weight"], effective, near, own)
            row = linear_row(site, path, choice, linear, error)
            row |= {"in_features": site.in_features, "tokens": moments.n_tokens}
            result.rows.append(row | {"alarm": alarms(row, site, choice, moments)})
            packed = write_linear(settings.layout, linear.packed)
            result.tensors.update({f"{path}.{part}": t for part, t in packed.items()})
            wide.pop(f"{path}.weight")
            bias = wide.pop(f"{path}.bias", None)
            if bias is not None:  # AutoAWQ stores it beside the scales, in their dtype
                dtype = tensors[f"{path}.bias"].dtype
                if settings.layout.startswith("awq-"):
                    dtype = torch.float16
                result.tensors[f"{path}.bias"] = stored(bias, dtype, f"{name}.{path}.bias")
    for path, tensor in tensors.items():
        if path in wide:
            result.tensors[path] = stored(wide[path], tensor.dtype, f"{name}.{path}")
        elif not tensor.is_floating_point():
            result.tensors[path] = tensor
    return result


def _weights(site: Site, tensors: dict, settings: Settings, name: str) -> dict[str, torch.Tensor]:
    weights = {path: tensors[f"{path}.weight"] for path in site.linears}
    return {
        path: weight
        for path, weight in weights.items()
        if is_quantized(path, weight, settings, name)
    }


def storable_scales(
    site: Site, scales: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Move scales to the nearest ones whose fold into a norm the norm's dtype can hold.

    A bfloat16 norm divided by a scale is rounded by up to 0.4 %, which no search sees.
    Taking the scale that the rounded norm stands for makes the fold exact.

    Parameters
    ----------
    site : Site
    scales : (K,) torch.Tensor of float32
    tensors : dict of str to torch.Tensor
        The block's tensors as stored.

    Returns
    -------
    (K,) torch.Tensor of float32
        `scales` itself where the site folds into a linear, which is quantized afterwards.
    """
    import torch

    if site.kind not in ("norm", "norm_plus_one"):
        return scales
    weight = tensors[f"{site.prev_op}.weight"]
    shift = 1.0 if site.kind == "norm_plus_one" else 0.0
    gain = weight.float() + shift
    source = torch.as_tensor(np.asarray(site.source))
    fed = source >= 0
    gain = gain[source.clamp(min=0)]
    folded = (gain / scales - shift).to(weight.dtype).float() + shift
    exact = gain / folded
    usable = fed & (folded != 0) & torch.isfinite(exact) & (exact > 0)
    return torch.where(usable, exact, scales)


def row_factors(
    sites: list[Site], choices: dict[str, SiteChoice], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return what folds multiplied the rows of linears by.

    Parameters
    ----------
    sites : list of Site
    choices : dict of str to SiteChoice
        By site.
    tensors : dict of str to torch.Tensor
        The block's tensors, for the number of rows.

    Returns
    -------
    dict of str to (N,) torch.Tensor
        By path of the linear.
    """
    import torch

    factors: dict[str, torch.Tensor] = {}
    for site in sites:
        if site.kind != "linear" or site.name not in choices:
            continue
        source = torch.as_tensor(np.asarray(site.source))
        fed = source >= 0
        n_rows = len(tensors[f"{site.prev_op}.weight"])
        rows = factors.setdefault(site.prev_op, torch.ones(n_rows))
        rows[source[fed]] = 1 / choices[site.name].channel_scales[fed]
    return factors


def stored(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Cast to the dtype a tensor is stored in.

    Raises
    ------
    OverflowCastError
        If a finite value becomes infinite.
    """
    import torch

    result = values.to(dtype)
    lost = torch.isinf(result) & torch.isfinite(values)
    if lost.any():
        raise OverflowCastError(
            f"{name} reaches {float(values.abs().max()):.6g} after folding, too large for {dtype} "
            f"({int(lost.sum())} elements); list its linears in modules_to_not_convert."
        )
    return result
