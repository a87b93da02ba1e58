"""Predict cycles of the kernels' inner loops for cores of x86 and ARM, and check on this one.

python benchmarks/arm_static.py [--out data/records/static_throughput.jsonl] [--no-calibration]

Needs the cross compiler and llvm-mca of tests/arm/toolchain.py --with-mca, and for the error of
the predictions a quiet x86 machine whose core LLVM has a model of. About a minute.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from awqbench.bench import static_throughput as static
from awqbench.bench.records import append_record, make_record
from awqbench.gemm import native_build

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "arm"))
import toolchain  # noqa: E402

SOURCES = {
    "aarch64": {
        "neon": "native_neon.cpp",
        "neon-dotprod": "native_neon_dotprod.cpp",
        "neon-i8mm": "native_neon_i8mm.cpp",
        "sve-256": "native_sve.cpp",
    },
    "x86_64": {"avx2": "native_avx2.cpp", "avx512-vnni": "native_avx512.cpp"},
}
COLUMNS = (
    "provenance", "core", "processor", "level", "activations", "kernel", "tokens",
    "instructions_per_1024", "simulated_cycles_per_1024", "bound_cycles_per_1024",
    "measured_cycles_per_1024", "refused",
)  # fmt: skip


def compile_loops(compiler: list[str], processor: str, level: str, folder: Path):
    """Return the loops of a level as its compiler makes them."""
    source = SOURCES[processor][level]
    target = folder / f"{level}.s"
    flags = (*native_build.FLAGS, *native_build.LEVELS[processor][source])
    command = [*compiler, *flags, "-S", str(ROOT / "kernels" / source), "-o", str(target)]
    subprocess.run(command, check=True)
    loops = static.find_loops(target.read_text(), sve_bits=256 if level == "sve-256" else 128)
    return static.telling_loops(loops)


def predict(mca: Path, processor: str, level: str, loops) -> list[dict]:
    """Return a row for each loop and core."""
    rows = []
    for core in static.CORES[processor]:
        if level not in static.LEVELS[core]:
            continue
        for loop in loops:
            row = {"provenance": "predicted", "core": core, "processor": processor, "level": level,
                   "kernel": loop.kernel, "activations": static.ACTIVATIONS[loop.kernel],
                   "tokens": loop.tokens, "instructions_per_1024": loop.instructions_per_1024,
                   "refused": ""}  # fmt: skip
            try:
                band = static.analyse_loop(mca, processor, core, loop)
                row["simulated_cycles_per_1024"], row["bound_cycles_per_1024"] = band
            except static.StaticModelError as error:
                row["refused"] = str(error)
            rows.append(row)
    return rows


def measure(level: str, loops, folder: Path) -> dict[tuple, float]:
    """Return measured cycles for 1024 weights, by kernel and tokens, on this processor."""
    source = SOURCES["x86_64"][level]
    cases = " ".join(f"RUN({loop.kernel}, {loop.bits}, {loop.tokens})" for loop in loops)
    program = folder / f"calibrate-{level}"
    flags = (*native_build.FLAGS, *native_build.LEVELS["x86_64"][source])
    command = [*native_build.find_compiler(), *flags, f"-I{ROOT / 'kernels'}",
               f'-DLEVEL="{source}"', f"-DCASES={cases}",
               str(ROOT / "benchmarks" / "arm_calibration.cpp"), "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        kernel, _, tokens, cycles = line.split()
        found[kernel, int(tokens)] = float(cycles)
    return found


def calibrate(mca: Path, loops: dict[str, list], folder: Path) -> list[dict]:
    """Return rows of this processor, measured beside predicted."""
    from awqbench.gemm import native

    core = static.host_core(mca)
    if core not in static.CORES["x86_64"]:
        print(f"this processor is {core} to LLVM, which has no model of its own: not calibrated")
        return []
    rows = []
    for level, own in loops.items():
        if level not in native.library().levels or level not in static.LEVELS[core]:
            continue
        measured = measure(level, own, folder)
        for row in predict(mca, "x86_64", level, own):
            if row["core"] == core:
                row["provenance"] = "measured_here"
                row["measured_cycles_per_1024"] = measured[row["kernel"], row["tokens"]]
                rows.append(row)
    return rows


def main() -> int:
    """Predict, calibrate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-calibration", action="store_true")
    options = parser.parse_args()
    try:
        tools, mca = toolchain.find(), toolchain.find_mca()
    except toolchain.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        compilers = {"aarch64": [str(tools.cxx)], "x86_64": native_build.find_compiler()}
        here = {}
        for processor, levels in SOURCES.items():
            for level in levels:
                loops = compile_loops(compilers[processor], processor, level, folder)
                rows += predict(mca, processor, level, loops)
                if processor == platform.machine():
                    here[level] = loops
        if not options.no_calibration:
            rows += calibrate(mca, here, folder)
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    print(table.drop(columns=["processor", "kernel"]).round(1).to_string(index=False))
    if options.out is not None:
        settings = {"llvm": static.mca_version(mca), "bits": 4, "group_size": 128}
        append_record(options.out, make_record("static_throughput", table, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
