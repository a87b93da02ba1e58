"""Loaders that miss a package, or do not know what a checkpoint says."""

from __future__ import annotations

from awqbench.inspect.known.pain import Pain

_LOAD = 'import awqbench as ab; model = ab.load_quantized("{model}")'
_WHAT = 'import awqbench as ab; ab.open_checkpoint("{model}").quantization'

PAINS = (
    Pain(
        title="transformers needs gptqmodel for an AWQ checkpoint",
        patterns=(r"Loading an AWQ quantized model requires gptqmodel",),
        cause="transformers 5 has no AWQ kernels of its own, on no device.",
        fix=(
            "Load it with awqbench, which needs no further package; or pip install gptqmodel: "
            "7.6.0 with torch 2.8 to 2.13, 7.7.0 only with torch 2.14.1 or later."
        ),
        check=_LOAD,
        source="transformers 5.23, run",
    ),
    Pain(
        title="transformers needs optimum for a GPTQ checkpoint",
        patterns=(r"Loading a GPTQ quantized model requires optimum",),
        cause="transformers reads GPTQ through optimum, and that through gptqmodel.",
        fix="pip install optimum gptqmodel, or convert the checkpoint.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="transformers 5.23, run",
    ),
    Pain(
        title="transformers' GPTQ loader has no path without a GPU here",
        patterns=(r"GPU is required to quantize or run quantize model",),
        cause="optimum is installed and gptqmodel is not; without it GPTQ needs a GPU.",
        fix="pip install gptqmodel, or load with awqbench after converting.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="transformers 5.23 with optimum, by reading",
    ),
    Pain(
        title="transformers needs compressed-tensors",
        patterns=(
            r"compressed-tensors ?>= ?(?P<version>[\d.]{1,20}\d) is required for "
            r"compressed-tensors",
        ),
        cause="The package compressed-tensors is missing or older than {version}.",
        fix="pip install -U 'compressed-tensors>={version}', or convert the checkpoint.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="transformers 5.23, run",
    ),
    Pain(
        title="transformers needs auto-round",
        patterns=(r"Loading an AutoRound quantized model requires auto-round",),
        cause="The config says quant_method auto-round, and the package is not installed.",
        fix=(
            "pip install 'auto-round>=0.5'. Its native checkpoints hold GPTQ or AWQ tensors "
            "(packing_format tells which), so converting works too."
        ),
        check=_WHAT,
        source="transformers 5.23, run",
    ),
    Pain(
        title="GPTQModel has no kernel for this layout on this device",
        patterns=(r"No valid quant linear",),
        cause=(
            "No kernel takes this layout, device and shape together. AWQ GEMV and GEMV-fast "
            "have none on the CPU."
        ),
        fix="Convert to the GEMM layout, which every loader takes.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="GPTQModel 7.6 and 7.7, run",
    ),
    Pain(
        title="GPTQModel and torch do not fit together",
        patterns=(
            r"gptqmodel (?P<version>[\d.]{1,20}\d) requires torch ?>= ?(?P<needs>[\d.]{1,20}\d)"
            r"(?:, but you have torch (?P<have>[\w.+]{1,120}))?",
        ),
        cause="gptqmodel {version} needs torch {needs} or later.",
        fix=(
            "Take gptqmodel 7.6.0, which runs on torch 2.8 and later, or give 7.7.0 an "
            "environment of its own; or load with awqbench."
        ),
        check=_LOAD,
        source="pip; package metadata of gptqmodel 7.3.6 to 7.7.0",
    ),
    Pain(
        title="GPTQModel wants more CPU workers than there are",
        patterns=(
            r"Virtual pool '(?P<pool>[\w:]{1,120})' requests (?P<asked>\d{1,9}) workers but parent "
            r"'(?P<parent>\w{1,120})' only has (?P<have>\d{1,9})",
        ),
        cause="GPTQModel.load asks for {asked} workers on a machine where it counts {have}.",
        fix="Set GPTQMODEL_CPU_WORKERS={asked} in the environment before importing gptqmodel.",
        check=_LOAD,
        source="GPTQModel 7.7.0 on 2 CPUs, run",
    ),
    Pain(
        title="AutoAWQ wants Intel's IPEX to run on the CPU",
        patterns=(
            r"Please install intel_extension_for_pytorch with",
            r"Please install IPEX package with",
        ),
        cause="AutoAWQ's CPU path is Intel's extension for x86, and it is not installed.",
        fix=(
            "Load with awqbench instead; IPEX is x86 only and must match the torch release "
            "exactly (AutoAWQ was last tested with torch 2.6)."
        ),
        check=_LOAD,
        source="AutoAWQ 0.2.9 on the CPU, run",
    ),
    Pain(
        title="AutoAWQ took the Triton kernel on the CPU",
        patterns=(r"'<' not supported between instances of 'NoneType' and 'int'",),
        cause=(
            "The plain CPU branch of AutoAWQ's GEMM runs only where triton cannot be imported, "
            "and autoawq depends on triton."
        ),
        fix="Load with awqbench, which chooses by where the tensors are.",
        check=_LOAD,
        source="AutoAWQ 0.2.9 on the CPU, run",
        frames=r"\bawq[/\\.]|awq_gemm_triton|WQLinear",
    ),
    Pain(
        title="AutoAWQ's compiled kernels are missing",
        patterns=(
            r"External AWQ kernels are not properly installed",
            r"No module named '(?:awq_ext|awq_v2_ext|awq_inference_engine)'",
            r"AWQ V2 kernels? (?:are|is) not .{0,20}?installed",
        ),
        cause=(
            "The GEMV layouts need the autoawq-kernels package (awq_ext, awq_v2_ext), built for "
            "one torch and one CUDA; it is missing or was built for others."
        ),
        fix="Convert the checkpoint to GEMM, which needs no such kernels.",
        check="awqbench convert {model} OUT --layout awq-gemm",
        source="AutoAWQ 0.2.9, run",
    ),
    Pain(
        title="AutoAWQ's exllama path asserts that it is on a GPU",
        patterns=(r"post_init.{0,400}?AssertionError(?! ?:)",),
        frames=r"exllama(?:v2)?\.py",
        cause="exllama kernels exist for CUDA only; post_init asserts it without a text.",
        fix="Load without use_exllama, or with awqbench on the CPU.",
        check=_LOAD,
        source="AutoAWQ 0.2.9 on the CPU, run",
    ),
    Pain(
        title="auto-round's asymmetric export cannot run on the CPU alone",
        patterns=(r"unsupported operand type\(s\) for \+: 'NoneType' and 'str'",),
        cause="auto-round found no backend for the layer, and joins the missing name to a text.",
        fix="pip install gptqmodel, or export with --format auto_awq and load with awqbench.",
        check=_WHAT,
        source="auto-round 0.16.1, run",
        frames=r"auto_round",
    ),
    Pain(
        title="llm-compressor's AWQ needs an accelerator",
        patterns=(r"Cannot access accelerator device when none is available",),
        cause="AWQModifier pins memory for a GPU without looking whether there is one.",
        fix="Quantize with awqbench on this machine, or run llm-compressor on one with a GPU.",
        check="awqbench quantize {model} OUT",
        source="llm-compressor 0.14.0.1 on CPU-only torch, run",
    ),
    Pain(
        title="transformers 5 does not read AWQ's marlin layout",
        patterns=(r"Invalid format '(?P<layout>\w{1,120})'\. Must be one of ?:? ?\[ ?'gemm'",),
        cause="The config says version {layout}, which transformers does not know.",
        fix="Quantize the original again in the GEMM layout; engines repack it for Marlin.",
        check=_WHAT,
        source="transformers 5.23, run",
    ),
    Pain(
        title="The weights have other shapes than the quantization config says",
        patterns=(r"You set `?ignore_mismatched_sizes`? to `?False`?",),
        cause=(
            "Packed tensors do not have the shapes that the config gives. Known cases: keys "
            "w_bit and q_group_size instead of bits and group_size (they are ignored, 4 and 128 "
            "assumed), and GPTQModel's per-layer `dynamic` rules, which transformers ignores."
        ),
        fix="Compare bits and group_size in config.json with the tensors; repair the config.",
        check="awqbench inspect {model}",
        source="transformers 5.23, run",
        frames=r"qweight|qzeros|weight_packed|quantization_config",
    ),
    Pain(
        title="transformers skips a quantization that it does not know",
        patterns=(r"Unknown quantization type, got ['\"`]?(?P<method>[\w-]{1,120})",),
        cause=(
            "quant_method {method} is unknown here, and that is only a warning: the quantized "
            "layers are then filled at random and the model prints nonsense."
        ),
        fix="Install what reads {method}, update transformers, or convert the checkpoint.",
        check=_WHAT,
        source="transformers 4.51 and 5.23, run",
    ),
    Pain(
        title="transformers does not read HQQ at present",
        patterns=(r"QuantizationMethod\.HQQ is not available yet",),
        cause="This release lists HQQ and refuses it.",
        fix="Use the hqq package's own loader, or quantize the original into another layout.",
        check=_WHAT,
        source="transformers 5.23, run",
    ),
    Pain(
        title="FP8 quantization needs a GPU",
        patterns=(r"No GPU or XPU found\. A GPU or XPU is needed for FP8 quantization",),
        cause="transformers' fine-grained FP8 runs on CUDA or XPU only.",
        fix="Use a 4-bit layout on this machine.",
        check=_WHAT,
        source="transformers 5.23, run",
    ),
)
