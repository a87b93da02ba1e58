"""NaN, infinity, and results that are wrong without an error."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import accuracy_drop, range_of_scales
from awqbench.inspect.known.pain import Pain

_HEALTH = (
    'import awqbench as ab; ab.health("{model}")'
    '.query("zero_groups_created > 0 or overflow_f16 > 0 or nonfinite > 0")'
)

PAINS = (
    Pain(
        title="NaN in a weight or its scales while AutoAWQ rounds it",
        patterns=(
            r"assert torch\.isnan\((?:w|scales|zeros)\)\.sum\(\) == 0"
            r"(?:.{0,600}?AssertionError|$)",
            r"pseudo_quantize_tensor.{0,700}?AssertionError(?! ?:)",
        ),
        cause=(
            "The weight became NaN or infinite before rounding. Mostly underflow: tiny bf16 "
            "weights become 0 in float16, a whole group is 0, and its largest weight divides "
            "0 by 0 (Qwen2-72B, mlp.gate_proj and up_proj). More rarely overflow: a bf16 weight, "
            "or the range of a group, above 65504 becomes inf."
        ),
        fix=(
            "Do not go through float16: quantize from the bf16 folder with awqbench quantize, "
            "which searches in float32. With AutoAWQ: load with torch_dtype=bfloat16, in a release "
            "that has PR #519 (an epsilon under the division)."
        ),
        check=_HEALTH,
        source="AutoAWQ and llm-awq quantizer; AutoAWQ #498, #577, PR #519; lmdeploy #1786",
    ),
    Pain(
        title="AutoAWQ found no scale with a finite loss",
        patterns=(r"raise Exception(?! ?\().{0,400}?\bException\b",),
        cause=(
            "All points of the scale search gave a loss of NaN, and AutoAWQ raises an Exception "
            "without a text; what it tried is logged at debug level. One infinite or NaN "
            "activation in float16 is enough: it spoils the mean of its channel, and the scales' "
            "normalisation spreads it to all channels."
        ),
        fix=(
            "Run in bfloat16, and find the layer whose inputs are not finite. awqbench calibrate "
            "counts such inputs by channel; on_nonfinite=mask leaves only bad channels unscaled."
        ),
        check="awqbench calibrate {model} stats/",
        source="AutoAWQ quantizer.py _compute_best_scale; AutoAWQ #600, #535",
        frames=r"_compute_best_scale",
    ),
    Pain(
        title="llm-compressor found no scale with a finite loss",
        patterns=(r"No finite loss was found in best scales? ?grid search",),
        cause=(
            "A block's outputs held NaN or infinity for every scale that was tried: usually the "
            "model runs in float16, whose largest number is 65504, or a mapping pairs a norm with "
            "layers that it does not feed."
        ),
        fix=(
            "Load the model in bfloat16 (float16 is not safer for AWQ). If it is bfloat16 "
            "already, look at the mapping of the layer that the debug log names last."
        ),
        check="awqbench calibrate {model} stats/",
        source="llm-compressor AWQModifier; llm-compressor #2213, PR #2635",
    ),
    Pain(
        title="NaN is back after padding",
        words=(
            r"after (?:the )?padding.{0,60}? nan\b",
            r"padd(?:ed|ing).{0,80}?29696.{0,80}?\bnan\b",
            r"\bnan\b.{0,60}?after (?:the )?padding",
        ),
        cause=(
            "Zero channels appended in one piece fill whole groups with zeros, and a formula that "
            "divides by a group's largest weight gets 0 / 0. 128 zeros after 29568 make one such "
            "group in every row of down_proj."
        ),
        fix=(
            "Spread the zero channels: one after each of as many real ones, so that every group "
            "holds real weights. `awqbench pad` does."
        ),
        check="awqbench pad {model} OUT --tp 8 --group-size 128",
        source="AutoAWQ PR #522; reproduced on a small MLP",
    ),
    Pain(
        title="The scales' normaliser overflows float16",
        patterns=(r"scales ?/=? ?\(scales\.max\(\) \* scales\.min\(\)\)\.sqrt\(\)",),
        cause=(
            "max * min of the channel scales is formed in the activations' dtype. In float16 it "
            "is infinite from 65520 on (scales of 256 and more), and all scales become 0; or it "
            "is 0 and they become inf."
        ),
        fix="Compute scales in float32 or logarithms: awqbench search does; or load in bfloat16.",
        check="awqbench calibrate {model} stats/",
        source="llm-awq auto_scale.py, AutoAWQ quantizer.py; llm-awq #96",
    ),
    Pain(
        title="Channel scales are NaN because activation means are signed",
        patterns=(r"Nan found in scales",),
        words=(
            r"(?:negative|signed) (?:activation|input|channel) means?",
            r"nan (?:values? )?in (?:the )?(?:awq|smoothing|channel|best) scales",
        ),
        cause=(
            "A negative mean to a fractional power is NaN. If abs() was lost before the mean, "
            "about half of the channels get NaN scales, and llm-compressor then replaced them by "
            "1 without a word. NaN activations give the same picture."
        ),
        fix=(
            "Update llm-compressor to a release with PR #1788, or search again with awqbench, "
            "which takes the mean of |x| in float32 and reports what is not finite."
        ),
        check="awqbench calibrate {model} stats/",
        source="llm-compressor PR #1788",
    ),
    Pain(
        title="The model prints only exclamation marks",
        patterns=(
            r"(?:^|['\">`: ])!{5,}(?:$|['\"<`. ])",
            r"!{20,}",
        ),
        words=(r"(?:only|just|nothing but|endless) exclamation (?:marks|points)",),
        cause=(
            "Logits are NaN and the sampler takes token 0, which is '!' in Qwen's and other "
            "vocabularies. Usually activations exceed 65504 in a float16 kernel; the weights "
            "themselves may be fine."
        ),
        fix=(
            "Run with bfloat16 activations: in vLLM --dtype bfloat16 without --quantization awq "
            "(awq_marlin takes bfloat16, the plain AWQ kernel only float16). Then look for NaN "
            "in the checkpoint's scales."
        ),
        check='import awqbench as ab; ab.health("{model}").query("nonfinite > 0")',
        source="vllm #14126, #16579; Qwen3 #315, #381, #826",
    ),
    Pain(
        title="The search chose extreme channel scales",
        patterns=(
            r"channel scales span (?P<span>\d{1,9}(?:\.\d{1,9})?)",
            r"s_max ?/ ?s_min(?: is| ratio| of)?[ :=~]{0,5}(?P<span>\d{1,9}(?:\.\d{1,9})?)",
        ),
        cause=(
            "Scales of one site span {span}; healthy ones span 2 to 4. The grid can prefer such "
            "a point when the folded norm feeds layers that the loss does not see, and the model "
            "is then wrong without an error (bits per byte 0.508 became 3.815 in one case)."
        ),
        fix=(
            "Look at the site's loss curve, check that the norm and its linears belong together, "
            "and compare with plain rounding (awqbench quantize MODEL OUT --set scales=none)."
        ),
        check="awqbench evaluate OUT --against {model}",
        source="llm-compressor PR #2630; the alarm is awqbench's own",
        derive=range_of_scales,
    ),
    Pain(
        title="The quantized model is much worse, without an error",
        words=(
            r"(?P<metric>accuracy|mmlu|gsm8k|humaneval|score|benchmark)"
            r"[^!?]{0,60}?(?:drop|fell|fall|went|decreas|degrad|from)[^\d]{0,40}?"
            r"(?P<before>\d{1,9}\.\d{1,9})%? (?:to|->|=>|→) (?P<after>\d{1,9}\.\d{1,9})",
        ),
        cause=(
            "{metric} fell by {drop}, from {before} to {after}. Four bits cost much less on a "
            "healthy run; a wrong fold pair, unsuited calibration text, or a lost tensor is "
            "likelier than too few bits. Which one, only a comparison layer by layer tells."
        ),
        fix=(
            "Compare with the full-precision model, then quantize once by plain rounding (--set "
            "scales=none --set clip=false): if that is better, the search went wrong; if not, "
            "look for layers with a large output error."
        ),
        check="awqbench evaluate QUANTIZED --against {model}",
        source="AutoAWQ #292, #360; llm-compressor #2522, #1600",
        derive=accuracy_drop,
    ),
    Pain(
        title="GPTQModel stopped at a NaN loss",
        patterns=(r"Failed due to NaN loss for ['\"`]?(?P<module>[\w.]{0,120}\w)",),
        cause=(
            "The quantization error of {module} is NaN: its inputs or its Hessian held NaN or "
            "infinity. The same model passed on another GPU model, so kernels and dtype take part."
        ),
        fix=(
            "Load in bfloat16 or float32, and count non-finite inputs of {module}; calibrate on "
            "more and longer text so that its Hessian has full rank."
        ),
        check="awqbench calibrate {model} stats/",
        source="GPTQModel; GPTQModel #1632 (A100 failed, H200 did not)",
    ),
    Pain(
        title="AutoAWQ damages weights when it quantizes on the CPU",
        words=(r"autoawq.{0,100}?\bcpu\b.{0,100}?(?:garbage|gibberish|nonsense|corrupt)",),
        cause=(
            "AutoAWQ 0.2.9 saves a block's weights by .cpu() before its trial scales, and on the "
            "CPU that is no copy: the trials add up in the weights. Measured on a tiny Qwen2: "
            "logits' mean squared error 0.566, and 0.065 with a real copy."
        ),
        fix="Quantize again with awqbench quantize, or on a GPU: the saved folder is damaged.",
        check="awqbench evaluate QUANTIZED --against {model}",
        source="AutoAWQ 0.2.9 _compute_best_scale, run",
    ),
)
