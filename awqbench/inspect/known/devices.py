"""Tensors on two devices, CPU and disk in a device_map, machines without a GPU."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import devices
from awqbench.inspect.known.pain import Pain

_ON_CPU = 'import awqbench as ab; model = ab.load_quantized("{model}", device="cpu")'

PAINS = (
    Pain(
        title="Two tensors that meet lie on different devices",
        patterns=(
            r"Expected all tensors to be on the same device, but (?:found at least two devices,"
            r"|got [\w ]{1,30} is on) (?P<first>cuda:\d|cpu),?(?: and|, different from other "
            r"tensors on) (?P<second>cuda:\d|cpu)",
            r"Expected all tensors to be on the same device,? (?P<first>cuda:\d|cpu) and "
            r"(?P<second>cuda:\d|cpu)",
        ),
        cause="{first} and {second}: {why}.",
        fix=(
            "Put inputs and model on one device (CUDA_VISIBLE_DEVICES=0 where it fits), or use a "
            "device_map that keeps a block whole. In AutoAWQ it comes with transformers 4.43 and "
            "later, whose rotary embedding is the model's; a release with PR #668 moves it."
        ),
        check='import awqbench as ab; ab.plan_placement("{model}", budgets={{"cuda:0": "40GiB"}})',
        source="torch; AutoAWQ #667, #662, #558; lmdeploy #1675",
        derive=devices,
    ),
    Pain(
        title="device_map='auto' put part of a quantized model on the CPU or disk",
        patterns=(r"Some modules are dispatched on the CPU or the disk",),
        cause=(
            "Either the free GPU memory is too small, or the plan is wrong: transformers left "
            "embeddings and lm_head, which stay in full precision, out of the balance, so that a "
            "card overflows on paper even with several times the room."
        ),
        fix=(
            "Pass a device_map of your own, made from the real bytes; update transformers to a "
            "release with PR #47061. If the model truly does not fit, free the GPU first."
        ),
        check='import awqbench as ab; ab.plan_placement("{model}", budgets={{"cuda:0": "40GiB"}})',
        source="transformers' bitsandbytes and similar loaders; transformers #46823, PR #47061",
    ),
    Pain(
        title="An AWQ model's device_map has a CPU or disk part",
        patterns=(
            r"You are attempting to load an AWQ model with a device_map that contains a "
            r"CPU or disk device",
        ),
        cause="transformers' AWQ kernels run on the GPU only, and part of the map is elsewhere.",
        fix=(
            "Make a map that holds GPUs only, or load all of it on the CPU with awqbench. "
            "device_map='auto' adds the CPU as soon as a card is short by one module."
        ),
        check="awqbench plan {model}",
        source="transformers AWQ loader; AutoAWQ #526",
    ),
    Pain(
        title="This AWQ loader has no path without a GPU",
        patterns=(
            r"GPU is required to run AWQ quantized model",
            r"AWQ is only available on GPU",
        ),
        cause="The loader found no CUDA device and its only CPU path is Intel's IPEX, for GEMM.",
        fix=(
            "Load it with awqbench, which runs AWQ on any CPU, ARM too. If a GPU should be there, "
            "look at torch.cuda.is_available(). Do not move a loaded AWQ model to the CPU."
        ),
        check=_ON_CPU,
        source="transformers 4.51 with autoawq, run; txtai #687, Qwen3 #898",
    ),
    Pain(
        title="vLLM's CPU build lacks its 4-bit kernel on this processor",
        patterns=(r"object has no attribute ['\"]cpu_gemm_wna16['\"]",),
        cause=(
            "vLLM compiles cpu_gemm_wna16 for AVX-512, RISC-V vectors and s390x only; an AVX2 "
            "processor, and by that rule ARM, has no such operator."
        ),
        fix="Use a machine with AVX-512, or run the checkpoint with awqbench.",
        check=_ON_CPU,
        source="vllm #55613",
    ),
    Pain(
        title="torch has no bf16 matrix kernel (brgemm) for this processor",
        patterns=(r"Unable to get JIT kernel for brgemm",),
        cause=(
            "oneDNN's brgemm for this dtype needs AVX-512 with bf16 or AMX; this processor "
            "has probably neither."
        ),
        fix="Compute in float32 on this machine: dtype='float32'.",
        check='import awqbench as ab; ab.load_quantized("{model}", dtype="float32")',
        source="llm-awq #241 (the instruction sets are our reading)",
    ),
    Pain(
        title="There is no autoawq package for this machine",
        patterns=(
            r"(?:No matching distribution found for|satisfies the requirement) "
            r"autoawq(?:[-_]kernels)?\b",
        ),
        cause=(
            "autoawq's kernel wheels are for x86-64 Linux and Windows and certain Python and "
            "CUDA versions; there are none for ARM, and the project ended in 2025."
        ),
        fix="Do without it: awqbench reads, writes and runs AWQ checkpoints with torch alone.",
        check=_ON_CPU,
        source="pip; textgen #4887, AutoAWQ #336, #544",
    ),
    Pain(
        title="AWQ on an ARM or AVX2 CPU is very slow in this engine",
        words=(
            r"(?:very|extremely|super) slow.{0,80}?\b(?:arm|aarch64|kunpeng|graviton|avx2)\b",
            r"\b(?:arm|aarch64|kunpeng|graviton|avx2)\b.{0,80}?(?:very|extremely|super) slow",
        ),
        cause=(
            "Without a 4-bit kernel for the processor the engine unpacks weights for every "
            "token, or emulates; reports are 5000 s for 132 tokens of an 8B model on AVX2."
        ),
        fix="See which backend is there and why others are not; take bfloat16 for speed.",
        check="import awqbench as ab; ab.available_backends()",
        source="vllm #10706, sonar PR #1238",
    ),
    Pain(
        title="This torch is built without CUDA",
        patterns=(r"Torch not compiled with CUDA enabled",),
        cause="Something called .cuda() or .to('cuda'), and the installed torch is a CPU build.",
        fix=(
            "With an NVIDIA GPU: install torch from the CUDA index (pytorch.org tells the line). "
            "Without: find the .cuda() in the traceback's last frame of your code and use 'cpu'."
        ),
        check=_ON_CPU,
        source="torch/cuda/__init__.py; also ChatGLM's quantize() on a CPU build",
    ),
    Pain(
        title="ChatGLM's quantize() wants its weights on the GPU",
        patterns=(r"weights that need to be quantified should be on the CUDA device",),
        cause=(
            "ChatGLM3's own quantization moves each weight to `device` and then asserts that "
            "it is CUDA; the model, or a device_map, has it on the CPU."
        ),
        fix="model.quantize(bits=4, device='cuda').cuda(), without device_map.",
        check="awqbench doctor {model}",
        source="ChatGLM3 quantization.py; ChatGLM3 #1056, #1095, #1148",
    ),
    Pain(
        title="ChatGLM's CPU kernel was not compiled",
        patterns=(r"object has no attribute ['\"]int4WeightExtraction(?:Float|Half)['\"]",),
        cause="The model's code compiles C with gcc when it is imported, and that failed.",
        fix=(
            "Install gcc and load again. On ARM add -fsigned-char: with unsigned char, codes "
            "read as 9 where -7 is stored."
        ),
        check="awqbench inspect {model}",
        source="ChatGLM-6B #613, #417",
    ),
)
