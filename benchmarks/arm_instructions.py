"""Count the instructions of the native kernels for 1024 weights, on x86 and emulated ARM.

python benchmarks/arm_instructions.py [--out data/records/arm_instructions.jsonl]

Counts are exact and no times: of the kernels' own code (libraries' left out), the difference
between a weight of two panels of 64 columns and one of one panel; so all that a panel needs, and
not the activations' way to integers, which all panels share. ARM's come from the emulator's trace
of single steps, this processor's from ptrace. A minute or two.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from awqbench.bench.records import append_record, make_record
from awqbench.gemm import native_build
from awqbench.gemm.native import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "arm"))
import run_emulated  # noqa: E402
import toolchain  # noqa: E402

ARM_LEVELS = ("neon", "neon-dotprod", "neon-i8mm", "sve-256")
WEIGHTS = 64 * 1024
TOKENS = (1, 16)
# Below a program's own end and above nothing else, where it is linked without -pie.
_OWN_TEXT = "0x400000+0xc00000"


def build(compiler: list[str], processor: str, folder: Path) -> Path:
    """Link kernels and driver into a program of fixed addresses."""
    kernels = ROOT / "kernels"
    sources = {kernels / name: () for name in native_build.SOURCES}
    sources |= {kernels / name: flags for name, flags in native_build.LEVELS[processor].items()}
    sources[ROOT / "benchmarks" / "arm_one_call.cpp"] = ()
    flags = [flag for flag in native_build.FLAGS if flag != "-fPIC"]
    objects = []
    for source, own in sources.items():
        objects.append(folder / f"{processor}-{source.name}.o")
        command = [*compiler, *flags, *own, "-fno-pie", f"-I{kernels}", "-c", str(source)]
        subprocess.run([*command, "-o", str(objects[-1])], check=True)
    program = folder / f"one-call-{processor}"
    subprocess.run(
        [*compiler, "-no-pie", "-pthread", *map(str, objects), "-o", str(program)], check=True
    )
    return program


def count_emulated(tools, program: Path, words: list[str], folder: Path) -> int:
    """Count steps of an ARM program by the emulator's trace."""
    log = folder / f"trace-{'-'.join(words)}"
    trace = ["-singlestep", "-d", "exec,nochain", "-dfilter", _OWN_TEXT, "-D", str(log)]
    command = tools.command(run_emulated.MAX_256, str(program), *words)
    subprocess.run([command[0], *trace, *command[1:]], check=True)
    with log.open("rb") as lines:
        steps = sum(line.startswith(b"Trace") for line in lines)
    log.unlink()
    return steps


def count_here(stepper: Path, program: Path, words: list[str]) -> int:
    """Count steps of a program of this processor by ptrace."""
    done = subprocess.run([stepper, program, *words], capture_output=True, text=True, check=True)
    return int(done.stdout)


def rows_of(processor: str, levels, count) -> list[dict]:
    """Return a row for each level, precision and number of tokens; counted two at a time."""
    cases = [
        (level, activations, tokens)
        for level in levels
        for activations in ACTIVATIONS
        for tokens in TOKENS
    ]

    def row(case: tuple) -> dict:
        level, activations, tokens = case
        words = [level, str(ACTIVATIONS.index(activations)), str(tokens)]
        steps = count([*words, "2"]) - count([*words, "1"])
        return {"provenance": "counted", "processor": processor, "level": level,
                "activations": activations, "tokens": tokens, "instructions": steps,
                "instructions_per_1024": steps * 1024 / WEIGHTS}  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(row, cases))


def main() -> int:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        tools = toolchain.find()
    except toolchain.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        program = build([str(tools.cxx)], "aarch64", folder)
        rows = rows_of(
            "aarch64", ARM_LEVELS, lambda words: count_emulated(tools, program, words, folder)
        )
        if platform.machine() == "x86_64":
            from awqbench.gemm.native import library

            own = build(native_build.find_compiler(), "x86_64", folder)
            stepper = folder / "count-steps"
            source = ROOT / "benchmarks" / "arm_count_steps.cpp"
            subprocess.run(
                [*native_build.find_compiler(), "-O2", source, "-o", stepper], check=True
            )
            levels = [level for level in library().levels if level != "portable"]
            rows += rows_of("x86_64", levels, lambda words: count_here(stepper, own, words))
    table = pd.DataFrame(rows)
    print(table.drop(columns="provenance").round(1).to_string(index=False))
    if options.out is not None:
        settings = {"bits": 4, "group_size": 128, "out_features": 64, "in_features": 1024}
        append_record(options.out, make_record("arm_instructions", table, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
