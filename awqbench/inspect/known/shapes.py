"""Shapes that a quantizer or a layout cannot hold."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import misfit
from awqbench.inspect.known.pain import Pain

PAINS = (
    Pain(
        title="AutoAWQ: a layer's width is not a multiple of the group size, by number",
        patterns=(
            r"org_w_shape \((?P<size>\d{1,9})\) must be a multiple of "
            r"group_size \((?P<step>\d{1,9})\)",
        ),
        cause=(
            "A linear has {size} input channels, {remainder} over a multiple of group_size {step}."
        ),
        fix=(
            "Choose a group_size that divides {size} (64 or 32), or list the module in "
            "modules_to_not_convert, or pad it to {fits} first."
        ),
        check="awqbench doctor {model}",
        source="AutoAWQ 0.2.9 pseudo_quantize_tensor, run",
        derive=misfit,
    ),
    Pain(
        title="AutoAWQ: a layer's width is not a multiple of the group size",
        patterns=(
            r"assert (?:self\.)?in_features % (?:self\.)?group_size == 0"
            r"(?:.{0,600}?AssertionError|$)",
            r"assert org_w_shape\[-1\] % (?:self\.)?(?:q_)?group_size == 0(?!, ?f)"
            r"(?:.{0,600}?AssertionError|$)",
        ),
        cause=(
            "A linear's in_features is not a multiple of group_size; the assertion gives neither "
            "the layer nor the numbers."
        ),
        fix=(
            "Let doctor list the widths; choose group_size 64 or 32, exclude the layer by "
            "modules_to_not_convert, or pad."
        ),
        check="awqbench doctor {model}",
        source="AutoAWQ linear modules and auto-round; AutoAWQ #602, auto-round #388",
    ),
    Pain(
        title="AutoAWQ's GEMM kernel: out_features is not a multiple of 64",
        patterns=(r"OC is not multiple of cta_N = (?P<step>\d{1,9})",),
        cause="The CUDA kernel computes {step} outputs at a time and one layer has a remainder.",
        fix=(
            "Leave that layer in full precision by modules_to_not_convert (often a small "
            "projection or a vision tower's), or run the checkpoint on another engine."
        ),
        check="awqbench doctor {model}",
        source="AutoAWQ CUDA kernels; AutoAWQ #219",
    ),
    Pain(
        title="AutoAWQ's clip search: out_features is not a multiple of 64",
        patterns=(
            r"assert w\.shape\[0\] % (?P<step>64)(?: == 0)?(?:.{0,600}?AssertionError|$)",
            r"_compute_best_clip.{0,500}?assert .{0,40}% (?P<step>oc_batch_size|\d{1,9}) ?== 0",
        ),
        cause="The clip search takes rows in batches of {step} and a layer has a remainder.",
        fix=(
            "AutoAWQ: apply_clip=False, or exclude the layer. awqbench's clip search has no such "
            "limit."
        ),
        check="awqbench quantize {model} OUT",
        source="AutoAWQ _compute_best_clip; AutoAWQ #219",
    ),
    Pain(
        title="AutoAWQ cannot pack whole-row groups",
        patterns=(r"IndexError: index -2 is out of bounds",),
        cause="group_size=-1 reaches the packer as -1 and the count of groups comes out wrong.",
        fix="Give a positive group_size: 128, or the layer's own in_features for whole rows.",
        check="awqbench quantize {model} OUT --group-size 128",
        source="AutoAWQ 0.2.9 WQLinear_GEMM.from_linear, run; AutoAWQ #578",
        frames=r"\bawq\b|WQLinear",
    ),
    Pain(
        title="AutoAWQ cannot pack a layer whose out_features is not a multiple of 32",
        patterns=(
            r"IndexError: index (?P<index>\d{1,9}) is out of bounds for dimension 1 with "
            r"size (?P<words>\d{1,9})",
        ),
        cause=(
            "The packer writes zero points in blocks of 32 outputs, and the layer has fewer: "
            "N = 40 fails so, although the layout itself needs only a multiple of 8."
        ),
        fix="Exclude the layer by modules_to_not_convert, or quantize with awqbench.",
        check="awqbench quantize {model} OUT",
        source="AutoAWQ 0.2.9 WQLinear_GEMM.from_linear, run",
        frames=r"awq[/\\.]modules[/\\.]linear|WQLinear",
    ),
    Pain(
        title="AutoAWQ's GEMM layout holds asymmetric groups only",
        patterns=(r"assert scales is not None and zeros is not None(?:.{0,600}?AssertionError|$)",),
        cause="zero_point=False gives no zero points, and the packer asserts that there are some.",
        fix="Use zero_point=True with version gemm, or a GPTQ or compressed-tensors layout.",
        check="awqbench quantize {model} OUT",
        source="AutoAWQ 0.2.9 gemm.py, run",
    ),
    Pain(
        title="AutoAWQ writes 4 bits only",
        patterns=(r"Only 4-bit are supported for now",),
        cause="The AWQ GEMM layout of AutoAWQ has 4 bits; other widths have no kernel there.",
        fix=(
            "Use 4 bits, or convert to a layout that holds others: gptq (2, 3, 4, 8) or "
            "compressed-tensors."
        ),
        check="awqbench convert {model} OUT --layout compressed-tensors",
        source="AutoAWQ linear/gemm.py",
    ),
    Pain(
        title="GPTQModel packs multiples of 32 only",
        patterns=(
            r"(?P<side>in_features) must be divisible by 32",
            r"pack_block extension requires (?P<side>out_features) to be divisible by 32",
        ),
        cause="A layer's {side} is not a multiple of 32, and GPTQModel's packer needs that.",
        fix="Exclude the layer (dynamic rule with '-:'), or pad it before quantizing.",
        check="awqbench doctor {model}",
        source="GPTQModel 7.7, run",
    ),
)
