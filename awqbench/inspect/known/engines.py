"""What vLLM and compressed-tensors refuse, apart from tensor parallel."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import misfit
from awqbench.inspect.known.pain import Pain

_WHAT = 'import awqbench as ab; ab.open_checkpoint("{model}").quantization'

PAINS = (
    Pain(
        title="vLLM runs AWQ in 4 bits only",
        patterns=(
            r"Unsupported num_bits = (?P<bits>\d{1,9})\. Supported ?: ?4",
            r"only 4-bit weight quantization is supported for AWQ, but got (?P<bits>\d{1,9}) bits",
        ),
        cause="The checkpoint has {bits} bits; vLLM's AWQ kernels have 4.",
        fix=("Quantize again with 4 bits; 8 bits run as symmetric GPTQ or compressed-tensors."),
        check="awqbench quantize {model} OUT --set bits=4",
        source="vLLM awq.py; 0.33 auto_awq.py",
    ),
    Pain(
        title="vLLM does not run GPTQ at this width",
        patterns=(
            r"2, 3, 4, and 8-bit weight quantization is supported for GPTQ, but got "
            r"(?P<bits>\d{1,9}) bits",
            r"Marlin does not support weight_bits = (?P<bits>\w{1,120})",
        ),
        cause="The checkpoint's codes are {bits} (bits or type), which the kernel does not take.",
        fix="Quantize again with 4 bits.",
        check=_WHAT,
        source="vLLM gptq.py and marlin_utils.py",
    ),
    Pain(
        title="vLLM takes symmetric GPTQ only",
        patterns=(
            r"Unsupported quantization config: bits ?= ?(?P<bits>\d{1,9}), "
            r"sym ?= ?(?P<sym>True|False)",
        ),
        cause="bits={bits}, sym={sym}: vLLM 0.33 takes (4, True) and (8, True).",
        fix="Convert asymmetric 4-bit weights to AWQ, which has zero points, or use sym=True.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="vLLM 0.33 auto_gptq.py",
    ),
    Pain(
        title="vLLM dropped GPTQ's activation order",
        patterns=(r"GPTQ group activation ordering \(desc_act=True\) is no longer supported",),
        cause="The checkpoint has desc_act with groups: rows of one group lie apart (g_idx).",
        fix="Take a checkpoint with desc_act false or static groups, or quantize again.",
        check=_WHAT,
        source="vLLM 0.33 auto_gptq.py",
    ),
    Pain(
        title="Marlin does not have this group size",
        patterns=(r"Marlin does not support group_size = (?P<size>-?\d{1,9})",),
        cause="group_size {size}; Marlin kernels exist for -1, 32, 64 and 128.",
        fix="Quantize again with group_size 128, 64 or 32.",
        check="awqbench quantize {model} OUT --group-size 128",
        source="vLLM marlin_utils.py",
    ),
    Pain(
        title="None of vLLM's kernels takes a 4- or 8-bit layer",
        patterns=(r"Failed to find a kernel that can implement the WNA16 linear layer",),
        cause="Every kernel refused for its own reason; the list after 'Reasons:' has them all.",
        fix=(
            "Read the reason of the kernel you expect: Marlin or Machete on a GPU (group size "
            "and shapes), CPUWNA16 on a CPU (multiples of 32). Doctor checks the shapes."
        ),
        check="awqbench doctor {model}",
        source="vLLM 0.33 kernel selection",
    ),
    Pain(
        title="vLLM's CPU kernel wants multiples of 32",
        patterns=(
            r"(?P<side>Input|Output) size \((?P<size>\d{1,9})\) not supported by CPUWNA16, "
            r"supported sizes are multiples of (?P<step>\d{1,9})",
        ),
        cause="{side} size {size} leaves {remainder} over a multiple of {step}.",
        fix="Use fewer ranks, or leave the layer out; {fits} would fit.",
        check="awqbench doctor {model}",
        source="vLLM 0.33 CPUWNA16",
        derive=misfit,
    ),
    Pain(
        title="vLLM needs one precision for layers that it fuses",
        patterns=(r"some but not all shards of (?P<layer>[\w.]{0,120}\w) are quantized",),
        cause=(
            "vLLM fuses q, k, v and gate, up into {layer}; some of its parts are quantized and "
            "others were left out by modules_to_not_convert."
        ),
        fix="Quantize all parts of {layer} or none.",
        check="awqbench inspect {model}",
        source="vLLM is_layer_skipped",
    ),
    Pain(
        title="vLLM's Marlin kernel refused an AWQ layer",
        patterns=(
            r"Layer '(?P<layer>[\w.]{0,120}\w)' is not supported by (?:AutoAWQMarlin|AWQMarlin)",
        ),
        cause=(
            "{layer} goes to the slow AWQ kernel, which raises if groups do not divide. Shape, "
            "group size, missing zero points, or an old GPU (below compute capability 7.5)."
        ),
        fix="If it is only slow: check the layer's shape. If an error follows, that one counts.",
        check="awqbench doctor {model}",
        source="vLLM awq_marlin.py; 0.33 auto_awq.py",
    ),
    Pain(
        title="vLLM's plain AWQ kernel runs in float16 only",
        patterns=(r"torch\.bfloat16 is not supported for quantization method awq(?!_)",),
        cause="--quantization awq forces the plain kernel, which has no bfloat16.",
        fix=(
            "Leave --quantization away: vLLM then takes awq_marlin, which has bfloat16 and is "
            "several times faster. --dtype float16 works too, but may overflow."
        ),
        check='import awqbench as ab; ab.health("{model}").query("overflow_f16 > 0")',
        source="vLLM; Qwen3 #1823, #1941 and vllm #21376 for the speed",
    ),
    Pain(
        title="A compressed-tensors config has no group size",
        patterns=(r"found no group size and strategy is not channelwise",),
        cause="config_groups names neither a group_size nor the strategy channel.",
        fix="Repair strategy and group_size in config.json, or write the checkpoint again.",
        check="awqbench inspect {model}",
        source="vLLM compressed_tensors_wNa16.py",
    ),
    Pain(
        title="compressed-tensors dropped actorder='group'",
        patterns=(r"actorder ?= ?'group' has been removed",),
        cause="The checkpoint has weight_g_idx, which compressed-tensors 0.19 no longer reads.",
        fix="Install compressed-tensors below 0.19 for it, or convert the checkpoint.",
        check="awqbench convert {model} OUT --layout gptq-v2",
        source="compressed-tensors 0.19",
    ),
    Pain(
        title="This compressed-tensors cannot unpack zero points",
        patterns=(r"Decompression of packed zero points is currently not supported",),
        cause="Asymmetric weights store packed zero points, which 0.12 writes but cannot read.",
        fix="Update compressed-tensors to 0.19 or later, or convert the checkpoint.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="compressed-tensors 0.12.2, run",
    ),
)
