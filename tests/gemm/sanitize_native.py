"""Build the native kernels with sanitizers into a program of random calls, and run it.

The AMX level runs on any processor with AVX-512, its tile instructions as functions.

python tests/gemm/sanitize_native.py [--calls 10000] [--seed 0]
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from awqbench.gemm import native_build

DRIVER = Path(__file__).with_name("native_sanitizer.cpp")
KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FLAGS = (
    "-O1",
    "-g1",
    "-std=c++17",
    "-pthread",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-DAWQ_EMULATE_TILES",
    f"-I{KERNELS}",
    f"-I{DRIVER.parent}",
)


def build(folder: Path) -> Path:
    """Compile driver and kernels into `folder`; return the program."""
    compiler = native_build.find_compiler()
    sources = {DRIVER: (), **{KERNELS / name: () for name in native_build.SOURCES}}
    for name, flags in native_build.LEVELS.get(platform.machine(), {}).items():
        sources[KERNELS / name] = flags
    objects = [folder / f"{source.name}.o" for source in sources]

    def compile_one(source: Path, flags: tuple[str, ...], target: Path) -> None:
        command = [*compiler, *FLAGS, *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, sources.values(), objects))
    program = folder / "native_sanitizer"
    subprocess.run([*compiler, *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    return program


def main() -> int:
    """Build, run, and return the program's status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        return subprocess.run([program, str(options.calls), str(options.seed)]).returncode


if __name__ == "__main__":
    sys.exit(main())
