"""Dimensions that do not split over ranks."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import either_width, heads, misfit, padding_script
from awqbench.inspect.known.pain import Pain

_PAD_FIX = (
    "Load with a smaller tensor parallel size, such as 1. To keep it, pad the "
    "full-precision model first (awqbench pad BF16_MODEL OUT --tp {tp} --group-size {group}), "
    "then quantize the padded folder; group_size 64 or 32 may fit without padding."
)

PAINS = (
    Pain(
        title="A rank's share of a layer does not hold whole quantization groups",
        patterns=(
            r"The (?P<side>input|output) size is not aligned with the quantized weight shape",
        ),
        cause=(
            "vLLM cut a quantized linear over the ranks and the {side} side came out uneven: "
            "input slices must hold whole groups of {group}, output slices whole words of 8 "
            "codes. vLLM gives neither layer nor numbers. The usual case is down_proj of "
            "Qwen2-72B: 29568 = 231 x 128 and 231 is odd, so tensor parallel 2, 4 and 8 all "
            "fail."
        ),
        fix=_PAD_FIX + " For Qwen2-72B, 29696 = 232 x 128 fits 1, 2, 4 and 8.",
        check="awqbench doctor {model}",
        source="vLLM awq.py and gptq.py, in 0.33 auto_awq.py; vllm #1816, #5675, #21695",
    ),
    Pain(
        title="A rank's input is not a multiple of the Marlin kernel's tile",
        patterns=(
            r"Weight input_size_per_partition = (?P<size>\d{1,9}) is not divisible by "
            r"min_thread_k = (?P<step>\d{1,9})",
        ),
        cause=(
            "Each rank gets {size} input channels, which leaves {remainder} over a multiple of "
            "{step}: the Marlin kernel reads {step} at a time.{origin}"
        ),
        fix=(
            "Use fewer ranks, or pad the full-precision model so that each rank has {fits} "
            "(awqbench pad BF16_MODEL OUT --tp {tp} --group-size {group}) and quantize that. "
            "Another kernel (--quantization awq or gptq) helps only where whole groups fit."
        ),
        check="awqbench doctor {model}",
        source="vLLM before 0.33, verify_marlin_supports_shape; vllm #9913, llm-compressor #57",
        derive=misfit,
    ),
    Pain(
        title="A rank's output is not a multiple of the Marlin kernel's tile",
        patterns=(
            r"Weight output_size_per_partition = (?P<size>\d{1,9}) is not divisible by "
            r"min_thread_n = (?P<step>\d{1,9})",
        ),
        cause=(
            "Each rank gets {size} output channels, {remainder} over a multiple of {step}, the "
            "tile of the Marlin kernel.{origin} Vision towers often have such widths (4304)."
        ),
        fix=(
            "Use fewer ranks or --quantization gptq (awq), whose kernels have no such tile. If "
            "it is a vision tower, leave it out of quantization by modules_to_not_convert; "
            "else pad the layer to {fits} before quantizing."
        ),
        check="awqbench doctor {model}",
        source="vLLM before 0.33, verify_marlin_supports_shape; vllm #11128",
        derive=misfit,
    ),
    Pain(
        title="A rank's input does not hold whole groups, by number",
        patterns=(
            r"Weight input_size_per_partition = (?P<size>\d{1,9})"
            r"(?: for layer ['\"](?P<layer>[\w.]{1,120})['\"])? is not divisible by "
            r"group_size = (?P<step>\d{1,9})",
            r"in_features per partition (?P<size>\d{1,9}) is not divisible by "
            r"group_size = (?P<step>\d{1,9})",
        ),
        cause=(
            "Each rank gets {size} input channels: {remainder} over a multiple of group_size "
            "{step}, so a group would lie on two ranks.{origin}"
        ),
        fix=(
            "Use fewer ranks. To keep them, pad the full-precision model so that a rank has "
            "{fits} (awqbench pad BF16_MODEL OUT --tp {tp} --group-size {step}), then quantize; "
            "or quantize again with a group_size that divides {size}."
        ),
        check="awqbench doctor {model}",
        source="vLLM compressed-tensors WNA16 and kernel selection; vLLM 0.33",
        derive=misfit,
    ),
    Pain(
        title="A mixture-of-experts kernel cannot tile an expert's share",
        patterns=(r"size_k must (?:be )?divisible by BLOCK_SIZE_K",),
        cause=(
            "The expert's inner width on one rank is no multiple of the kernel's block. "
            "Probably the expert is narrow and the ranks are many: Qwen3-235B-A22B has 1536 "
            "channels, 192 on each of 8 ranks, and 192 is not a multiple of 128."
        ),
        fix=(
            "Use fewer tensor parallel ranks (4 leave 384 = 3 x 128 there), and spread experts "
            "whole instead: --enable-expert-parallel."
        ),
        check="awqbench doctor {model}",
        source="vLLM moe_wna16 kernel; vllm #17604 (the widths are our reading of it)",
    ),
    Pain(
        title="A mixture-of-experts group became smaller than 32",
        patterns=(r"assert [\w.]{0,120}group_size[\w.]{0,120} ?>= ?32",),
        cause=(
            "vLLM's MoeWNA16 halves the group size until it divides a rank's share of an "
            "expert, and stops below 32: the share holds an odd multiple of less than 32."
        ),
        fix="Use fewer tensor parallel ranks, or --enable-expert-parallel.",
        check="awqbench doctor {model}",
        source="vLLM moe_wna16",
        frames=r"moe_wna16|MoeWNA16",
    ),
    Pain(
        title="The padding script met a layer that is not the language model's",
        patterns=(
            r"shape '\[(?P<rows>\d{1,9}), -1\]' is invalid for input of size (?P<count>\d{1,9})",
        ),
        cause=(
            "{rows} = 2 x {width}: an interleaving padding script reshapes every weight "
            "whose name looks like an MLP's, and this one has {count} elements, {remainder} too "
            "many to fill rows. In vision-language models the vision tower has gate_proj "
            "and down_proj too, of another width."
        ),
        fix="Choose the tensors by shape, not by name: `awqbench pad` does.",
        check="awqbench pad {model} OUT --tp {tp} --group-size {group}",
        source="Qwen's padding recipe on a VL model; llm-compressor #1418",
        derive=padding_script,
    ),
    Pain(
        title="config.json's intermediate_size does not fit the weights",
        patterns=(
            r"size mismatch for (?P<layer>[\w.]{1,120})\.(?:gate_proj|up_proj|down_proj)\.weight: "
            r"copying a param with shape torch\.Size\(\[(?P<stored_rows>\d{1,9}), "
            r"(?P<stored_columns>\d{1,9})\]\) from checkpoint, the shape in current model is "
            r"torch\.Size\(\[(?P<rows>\d{1,9}), (?P<columns>\d{1,9})\]\)",
            r"intermediate_size['\"]?\s?(?:[:=]|from 29568 to|to) ?['\"]?(?P<cut>29440|29184)\b",
        ),
        cause=(
            "The weights have {have} channels; {change}. Cutting a width to make it divide "
            "throws trained channels away; naming a wider one without padded tensors cannot load."
        ),
        fix=(
            "Put {have} back into config.json, and pad instead of cutting: {fits} fits groups of "
            "128 on up to 8 ranks and leaves the outputs as they are."
        ),
        check="awqbench pad {model} OUT --tp 8 --group-size 128",
        source="transformers, after an edit of config.json; Qwen3-VL #231",
        derive=either_width,
    ),
    Pain(
        title="Attention heads do not divide over the ranks",
        patterns=(
            r"Total number of attention heads \((?P<heads>\d{1,9})\) must be divisible by "
            r"tensor parallel size \((?P<tp>\d{1,9})\)",
        ),
        cause=(
            "{heads} heads on {tp} ranks leave {remainder} over, and a head is never cut. "
            "No padding of the MLP changes this."
        ),
        fix="Choose a tensor parallel size among {fitting}; key-value heads bound it further.",
        check="awqbench doctor {model}",
        source="vLLM; Qwen3 #578 (29568 = 231 x 128 tempts to try 3, 7 or 11)",
        derive=heads,
    ),
    Pain(
        title="Key-value heads do not divide over the ranks",
        patterns=(
            r"assert (?:self\.)?total_num_kv_heads % [\w.]{1,120} == 0"
            r"(?:.{0,600}?AssertionError|$)",
            r"assert [\w.]{1,120} % (?:self\.)?total_num_kv_heads == 0"
            r"(?:.{0,600}?AssertionError|$)",
        ),
        cause=(
            "vLLM asserts without a text that the key-value heads divide over the ranks, or, if "
            "there are fewer heads than ranks, the ranks over the heads."
        ),
        fix="Choose a tensor parallel size that divides num_key_value_heads, or is a multiple.",
        check="awqbench doctor {model}",
        source="vLLM models/qwen2.py and its like",
    ),
    Pain(
        title="A dimension does not divide over the ranks",
        patterns=(r"AssertionError: (?P<size>\d{3,}) is not divisible by (?P<step>\d{1,3})\b",),
        cause=(
            "An engine splits a dimension of {size} over {step} ranks, {remainder} are left over. "
            "Weights (K or N) and the vocabulary, padded to a multiple of 64, are split so."
        ),
        fix=(
            "Choose a tensor parallel size that divides {size}; if it is intermediate_size, "
            "padding the full-precision model to {fits} helps too."
        ),
        check="awqbench doctor {model}",
        source="vLLM, SGLang: divide() of the parallel layers",
        derive=misfit,
    ),
)
