"""Out of memory, hours, one core, no resume."""

from __future__ import annotations

from awqbench.inspect.known.arithmetic import gibibytes, written_hours
from awqbench.inspect.known.pain import Pain

_OOM = (
    r"CUDA out of memory\. Tried to allocate (?P<amount>\d{1,9}(?:\.\d{1,9})?) (?P<unit>[KMGT]iB)"
    r"(?:\.? \(?GPU (?P<gpu>\d{1,9}))?"
)

PAINS = (
    Pain(
        title="AutoAWQ sends all calibration samples through a block at once",
        patterns=(_OOM,),
        cause=(
            "The forward pass of one block over every calibration sample asked for {gib} in one "
            "piece: mostly the activations of all samples together, not the weights."
        ),
        fix=(
            "AutoAWQ: n_parallel_calib_samples=1 (or 8), or max_calib_samples=64. awqbench "
            "calibrates window by window and keeps only sums."
        ),
        check="awqbench calibrate {model} stats/ --n-samples 128 --seq-len 512",
        source="AutoAWQ; AutoAWQ #382, #267, #242, #482",
        frames=r"awq[/\\]quantize|AwqQuantizer",
        derive=gibibytes,
    ),
    Pain(
        title="A GPU's memory is full",
        patterns=(_OOM,),
        cause=(
            "{gib} more did not fit. With several GPUs, look whether only GPU 0 is used: "
            "AutoAWQ quantizes on one device at a time, and tensor parallel is the engine's "
            "matter, not the quantizer's."
        ),
        fix=(
            "Plan before loading: which card holds which modules, with embeddings and lm_head "
            "at full size. In calibration lower samples or sequence length; in serving lower "
            "the context length or take more ranks."
        ),
        check="awqbench plan {model}",
        source="torch; AutoAWQ #281, #638, #65, vllm #2298",
        derive=gibibytes,
    ),
    Pain(
        title="Only GPU 0 is used while quantizing",
        words=(
            r"(?:only|just) (?:uses? |using )?(?:gpu|cuda:?|device) ?0\b",
            r"(?:other|remaining) (?:7 |3 )?gpus (?:are|stay|remain) (?:idle|empty|unused)",
        ),
        cause=(
            "AutoAWQ works on one layer at a time and its samples start on the first GPU; more "
            "cards add room for weights, not speed."
        ),
        fix=(
            "Quantize block by block from disk, as awqbench quantize does: one block of a 72B "
            "model is 1.76 GB in bf16, so that one card, or none, is enough."
        ),
        check="awqbench plan {model}",
        source="AutoAWQ #281, #638; vllm #2298",
    ),
    Pain(
        title="The machine's memory (RAM) is full",
        patterns=(
            r"DefaultCPUAllocator: (?:can't|not enough) .{0,30}?you tried to allocate "
            r"(?P<bytes>\d{1,18}) bytes",
            r"Out of memory: Killed process \d{1,9} \((?:python|pt_main|ray|vllm)[^)]{0,40}\)"
            r".{0,80}?anon-rss:(?P<kib>\d{1,15})kB",
        ),
        words=(
            r"(?:over|more than|uses?|need(?:s|ed)?|takes?) (?P<amount>\d{3,9}) ?"
            r"(?P<unit>G(?:i)?B) (?:of )?(?:(?:cpu )?(?:ram|memory)|for (?:a |the )?[\d.]{1,6}B)",
        ),
        cause=(
            "{gib} asked for or held: the whole model, and often the calibration activations of "
            "every layer with it, lie in RAM. A kill by the kernel leaves no Python traceback, "
            "only 'Killed' or exit status 137."
        ),
        fix=(
            "Stream the model: one block's weights at a time and sums instead of activations. A "
            "72B model then needs about 2 GB of weights and 5 to 8 GB besides, not 145 GB."
        ),
        check="awqbench quantize {model} OUT",
        source="torch, Linux; llm-compressor #1409, #1566, #1410",
        derive=gibibytes,
    ),
    Pain(
        title="Quantization takes hours",
        patterns=(
            r"AWQ: \d{1,9}%\|[^|]{0,80}\| \d{1,9}/(?P<blocks>\d{1,9}) \[[^\]]{0,40}?, "
            r"(?P<seconds>\d{1,9}(?:\.\d{1,9})?)s/it",
        ),
        words=(
            r"quantiz[^.]{0,60}? (?:took|takes|taking|for) (?:about |over |more than |~)?"
            r"(?P<hours>\d{1,9}(?:\.\d{1,9})?) ?(?:h|hours?)\b",
        ),
        cause=(
            "About {hours} hours for the run. The usual search runs every block again for each of "
            "20 grid points, one layer after another; reported 70B runs take 8 hours where a "
            "README says one."
        ),
        fix=(
            "Calibrate once and search from the statistics: a setting then costs minutes, and "
            "blocks run in parallel. Time the first block before you start a long run."
        ),
        check="awqbench calibrate {model} stats/",
        source="AutoAWQ #299, PR #508; llm-compressor #968",
        derive=written_hours,
    ),
    Pain(
        title="Quantizing on the CPU uses one core",
        words=(r"(?:uses?|using|on) (?:only |just )?(?:one|1|a single|single) (?:cpu )?core\b",),
        cause=(
            "AutoAWQ's search on the CPU is a chain of small steps; most of them run in one "
            "thread. A limit by OMP_NUM_THREADS or a container gives the same picture."
        ),
        fix=(
            "Unset OMP_NUM_THREADS and look at the container's CPU limit. awqbench quantize "
            "searches by large matrix products, which use every core."
        ),
        check="awqbench quantize {model} OUT",
        source="AutoAWQ #597, #57",
    ),
    Pain(
        title="The tool cannot go on with an interrupted quantization",
        words=(
            r"(?:resum(?:e|ing)|continue|restart)[^.]{0,40}?quantiz",
            r"quantiz[^.]{0,60}? (?:from|at) (?:layer|block) \d{1,9} (?:again|after a crash)",
        ),
        cause="AutoAWQ and llm-compressor keep no state: after a crash all layers run again.",
        fix="Use awqbench quantize: each finished block is on disk, the same command goes on.",
        check="awqbench quantize {model} OUT --resume",
        source="llm-compressor #1410, AutoGPTQ #765",
    ),
    Pain(
        title="How much memory does quantizing need?",
        words=(
            r"how much (?:gpu )?(?:v?ram|memory)[^?]{0,60}?quantiz",
            r"v?ram (?:table|requirements?)[^?]{0,60}?quantiz",
        ),
        cause="The tools' documents give no figures for AWQ; one block counts, not the model.",
        fix="Read the estimate from the headers: no weight is loaded for it.",
        check="awqbench doctor {model}",
        source="llm-compressor #1775, AutoAWQ #306",
    ),
)
