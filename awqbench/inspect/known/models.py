"""Architectures, versions that drift apart, LoRA, calibration data, choices."""

from __future__ import annotations

from awqbench.inspect.known.pain import Pain

_WHAT = 'import awqbench as ab; ab.open_checkpoint("{model}").quantization'

PAINS = (
    Pain(
        title="Loading stalls in the initialisation of weights",
        patterns=(
            r"model\.apply\((?:self|model)?\.?_initialize_weights\)",
            r"in _initialize_weights.{0,6000}?KeyboardInterrupt",
        ),
        cause=(
            "transformers 4.31 fills every weight at random before it loads the file: half an "
            "hour for a 72B model, not a hang."
        ),
        fix="Use transformers 4.32 or later, and give a device_map by hand for int8 models.",
        check="awqbench plan {model}",
        source="QwenLM/Qwen #1020",
    ),
    Pain(
        title="ChatGLM is not an architecture of this tool",
        patterns=(r"chatglm isn't supported yet", r"NotImplementedError: .{0,40}chatglm"),
        cause="AutoAWQ and llm-awq keep a hand-written table of models; chatglm is not in it.",
        fix="Quantize with ChatGLM's own quantize(4), or use GLM-4's transformers architecture.",
        check="awqbench doctor {model}",
        source="AutoAWQ #312, #642, llm-awq #214, vllm #1775",
    ),
    Pain(
        title="AutoAWQ does not know this architecture",
        patterns=(r"TypeError: (?!chatglm)(?P<kind>[\w.-]{1,120}) isn't supported yet",),
        cause="model_type {kind} is not in AutoAWQ's table, and the project has ended.",
        fix="awqbench finds by tracing which layers fold together: no table is needed.",
        check="awqbench doctor {model}",
        source="AutoAWQ models/auto.py",
        frames=r"check_and_get_model_type|\bawq\b|get_awq",
    ),
    Pain(
        title="AutoAWQ does not fit this transformers release",
        patterns=(
            r"'Catcher' object has no attribute '(?P<name>\w{1,120})'",
            r"(?<!\w)(?P<name>\w{1,60}Attention)\.forward\(\) missing .{0,80}?'attention_mask'",
        ),
        cause=(
            "AutoAWQ wraps a block to catch its inputs, and newer transformers asks that block "
            "for more ({name}). AutoAWQ ended in 2025, tested up to transformers 4.51.3."
        ),
        fix="pip install 'transformers==4.51.3' for AutoAWQ, or quantize with awqbench.",
        check="awqbench quantize {model} OUT",
        source="AutoAWQ #407, #749; transformers #29352, #29783",
    ),
    Pain(
        title="LoRA cannot be merged into quantized weights",
        patterns=(
            r"is a quantized model and does not support merge-lora",
            r"Cannot merge LORA layers when the model is \w{1,120} quantized",
        ),
        cause="A merge adds to full-precision weights, and these are packed codes.",
        fix=("Load the original bf16 model, merge the adapter there, save it, and quantize that."),
        check=_WHAT,
        source="ms-swift #1839, Qwen #542, LlamaFactory #5625",
    ),
    Pain(
        title="The model is already quantized",
        patterns=(r"Model is already quantized, will use `?from_quantized`?",),
        words=(
            r"\balready quantized\.",
            r"quantiz\w{0,120} an? (?:already[- ])?quantized (?:model|checkpoint)",
        ),
        cause="A quantized checkpoint was given where full-precision weights are needed.",
        fix="Quantize the original bf16 or fp16 folder; a second rounding adds a second error.",
        check=_WHAT,
        source="GPTQModel models/auto.py, ChatGLM; Qwen3 #698",
    ),
    Pain(
        title="An expert saw no calibration token",
        patterns=(
            r"(?<![\w.])(?P<module>[\w.]{0,120}experts\.\d{1,6}[\w.]{0,120})['\"`]? "
            r"has a zero dimension(?:.{0,80}?(?:expert|no data|calib))?",
            r"has a zero dimension.{0,80}?(?:expert|no data|calib)",
        ),
        cause=(
            "The router sent no token of the calibration text to one of the experts, so there "
            "is nothing to search with."
        ),
        fix=(
            "Calibrate on more and more varied text (4 times the samples), or let unseen experts "
            "be rounded plainly."
        ),
        check="awqbench calibrate {model} stats/ --n-samples 512",
        source="AutoAWQ PR #755; llm-compressor PR #2826; GPTQModel #3035",
    ),
    Pain(
        title="AutoAWQ excludes a layer that its search needs",
        patterns=(r"KeyError: '(?P<layer>(?:mlp|self_attn)\.(?:down|q|o|gate)_proj)'",),
        cause="{layer} is in modules_to_not_convert, and AutoAWQ still looks up its inputs.",
        fix="Exclude only k_proj, v_proj or up_proj in AutoAWQ; awqbench takes any.",
        check="awqbench quantize {model} OUT --set modules_to_not_convert={layer}",
        source="AutoAWQ 0.2.9, run",
        frames=r"\bawq\b|_get_input_feat|get_layers_for_scaling",
    ),
    Pain(
        title="Which calibration text, how many samples, which group size?",
        words=(
            r"how many (?:calibration )?(?:samples|examples|calib_samples)",
            r"(?:which|what) (?:calibration )?(?:dataset|data) [^?]{0,60}?"
            r"(?:calibrat|quantiz|awq|gptq)",
            r"(?:which|what) group[ _-]?size\b",
        ),
        cause=(
            "AWQ needs mean magnitudes, which settle early: 128 windows of 512 tokens are usual. "
            "Text like your use counts more than its amount; groups of 64 or 32 are more "
            "accurate and larger, and not every kernel has them."
        ),
        fix=("Calibrate once, then compare settings from the same statistics, on held-out text."),
        check="awqbench calibrate {model} stats/ --text YOUR.jsonl --n-samples 128",
        source="AutoAWQ #541, #191; Qwen3 #692; lmdeploy #1504; mlx-lm PR #159",
    ),
    Pain(
        title="The quantized model is slower than full precision",
        patterns=(r"awq quantization is not fully optimized yet",),
        words=(
            r"slower than (?:the )?(?:fp16|bf16|float16|bfloat16|half|full|unquantized|"
            r"non-quantized|original)",
        ),
        cause=(
            "Four bits save memory traffic, which bounds decoding of few sequences. With large "
            "batches or long prompts arithmetic bounds, and unpacking comes on top; forcing the "
            "plain AWQ kernel in vLLM costs several times (23 against 123 tokens/s)."
        ),
        fix="Leave --quantization awq away, so that vLLM takes Marlin; compare at your batch size.",
        check="import awqbench as ab; ab.available_backends()",
        source="AutoAWQ #119, #545, #717; llm-awq #243; vllm #21376",
    ),
)
