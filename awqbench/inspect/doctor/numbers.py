"""What the scan of the weights, and calibration statistics, mean for the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from awqbench.inspect.doctor.findings import CARE, NO, NOTE, Finding, listed, share

if TYPE_CHECKING:
    import pandas as pd

_SHARES = ("flushed", "subnormal")
_KEEP = (
    "awqbench searches in float32 and casts no weight: quantize the folder as it is. Tools that "
    "cast to float16 first (AutoAWQ, fp16 engines) lose these numbers; serve the rest in bfloat16"
)


def weight_findings(table: pd.DataFrame) -> Iterator[Finding]:
    """Judge the table of `health` with a cast to float16.

    Parameters
    ----------
    table : DataFrame
    """
    bad = table[table["nonfinite"].fillna(0) > 0]
    if len(bad):
        yield Finding(
            NO,
            "numbers",
            f"{int(bad['nonfinite'].sum()):,} weights are NaN or infinite, in "
            f"{len(bad)} tensors: {listed(bad['name'])}",
            "the file is damaged or was saved in a dtype too small for it: convert it again from "
            "the original",
        )
    yield from _cast_findings(table)
    yield from _shape_findings(table)


def _cast_findings(table: pd.DataFrame) -> Iterator[Finding]:
    large = table[table["overflow_f16"].fillna(0) > 0]
    if len(large):
        worst = large.loc[large["absmax"].idxmax()]
        yield Finding(
            CARE,
            "numbers",
            f"{int(large['overflow_f16'].sum()):,} weights are above float16's 65504, in "
            f"{len(large)} tensors; the largest is {worst['absmax']:.4g} in {worst['name']}",
            _KEEP,
        )
    gone = table[table["zero_groups_created"].fillna(0) > 0]
    if len(gone):
        worst = gone.loc[gone["zero_groups_created"].astype(float).idxmax()]
        yield Finding(
            CARE,
            "numbers",
            f"float16 would make {int(gone['zero_groups_created'].sum()):,} groups all zero, in "
            f"{len(gone)} tensors; most in {worst['name']} ({worst['zero_groups_created']:,} of "
            f"{worst['groups']:,}): dividing by their largest weight gives NaN",
            _KEEP,
        )
    flushed = table[table["flushed_f16"].fillna(0) > 0]
    if len(flushed):
        worst = flushed.loc[flushed["flushed_f16"].astype(float).idxmax()]
        yield Finding(
            NOTE,
            "numbers",
            f"float16 would flush weights to zero in {len(flushed)} of {len(table)} tensors; most "
            f"in {worst['name']} ({share(worst['flushed_f16'])} of them; another "
            f"{share(worst['subnormal_f16'])} would be subnormal)",
        )


def _shape_findings(table: pd.DataFrame) -> Iterator[Finding]:
    signed = table[table["one_signed_groups"].fillna(0) > 0]
    if len(signed):
        yield Finding(
            NOTE,
            "numbers",
            f"{int(signed['one_signed_groups'].sum()):,} of {int(table['groups'].sum()):,} groups "
            "have one sign; their range is widened to hold 0, so that zero points fit",
        )
    wide = table[table["outlier_channels"].fillna(0) > 0]
    if len(wide):
        worst = wide.loc[wide["outlier_channels"].astype(float).idxmax()]
        yield Finding(
            NOTE,
            "numbers",
            f"{int(wide['outlier_channels'].sum()):,} input channels stand out (8 times the "
            f"median channel), in {len(wide)} linears; most in {worst['name']} "
            f"({worst['outlier_channels']})",
        )


def activation_findings(table: pd.DataFrame) -> Iterator[Finding]:
    """Judge the table of `activation_health`, layer by layer."""
    from awqbench.inspect.health import VERDICTS, layer_verdicts

    layers = layer_verdicts(table)
    for verdict in reversed(VERDICTS[1:]):
        bad = layers[layers["verdict"] == verdict]
        if len(bad) == 0:
            continue
        places = [
            f"block {row.block} {row.site} (absmax {row.absmax:.4g}, {row.tight_channels} channels)"
            for row in bad.itertuples()
        ]
        yield Finding(
            CARE,
            "activations",
            f"{len(bad)} of {len(layers)} layers, {verdict}: {listed(places)}",
            "serve in bfloat16 (--dtype bfloat16; on CUDA the awq_marlin kernel takes it)",
        )
    if (layers["verdict"] == VERDICTS[0]).all():
        room = table["headroom_f16"].min()
        yield Finding(
            NOTE,
            "activations",
            f"all {len(layers)} layers are safe in float16: the largest input is {room:,.0f} times "
            "below its limit",
        )


def health_summary(table: pd.DataFrame) -> str:
    """Return one phrase for the card."""
    floats = table[table["absmax"].notna()]
    if len(floats) == 0:
        return "no floating-point tensor"
    flushed, subnormal = (floats[f"{what}_f16"].astype(float).max() for what in _SHARES)
    return (
        f"{len(floats)} tensors, largest weight {floats['absmax'].max():.4g}; in float16 at most "
        f"{share(flushed)} of a tensor flush to zero, {share(subnormal)} become subnormal"
    )
