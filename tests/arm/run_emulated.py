"""Run worker.py on this processor and under the emulator, for tests and records.

    python tests/arm/run_emulated.py CPU PARTS

prints what worker.py gives under the emulator, such as CPU neoverse-n1 and PARTS levels.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from toolchain import Toolchain, Unavailable, find

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
CONFORMANCE = (ROOT / "tests" / "data" / "conformance", ROOT.parent / "shared" / "conformance")
# A processor with dot products, one with nothing beyond NEON, and all that the emulator has
# with vectors of 256 and of 128 bits.
DOTPROD, NEON, MAX_256, MAX_128 = (
    "neoverse-n1",
    "cortex-a72",
    "max,sve-default-vector-length=32",
    "max,sve-default-vector-length=16",
)
_TIME_LIMIT_S = 280


class WorkerFailed(Exception):
    """worker.py ended with an error; holds its last lines."""


def run_here(parts: str) -> dict:
    """Return the results of worker.py on this processor."""
    return _results([sys.executable, *_words(parts)], None)


def run_guest(tools: Toolchain, cpu: str, parts: str) -> dict:
    """Return the results of worker.py under the emulator.

    Raises
    ------
    WorkerFailed
        If it ends with an error.
    """
    with tempfile.TemporaryDirectory(prefix="awqbench-arm-") as folder:
        stage_package(Path(folder))
        path = os.pathsep.join((folder, str(tools.site)))
        environment = tools.environment() | {"PYTHONPATH": path}
        return _results(tools.command(cpu, str(tools.python), *_words(parts)), environment)


def stage_package(folder: Path) -> None:
    """Lay out the package in a folder as a wheel would, by links."""
    package = folder / "awqbench"
    package.mkdir()
    for entry in (ROOT / "awqbench").iterdir():
        if entry.suffix == ".py" or (entry / "__init__.py").exists():
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")


def _words(parts: str) -> list[str]:
    return [str(WORKER), parts, *(str(folder) for folder in CONFORMANCE if folder.is_dir())]


def _results(command: list[str], environment: dict[str, str] | None) -> dict:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
    )
    if done.returncode:
        raise WorkerFailed("\n".join(done.stderr.splitlines()[-12:]))
    return json.loads(done.stdout)


def main() -> int:
    """Print the results of one run."""
    try:
        print(json.dumps(run_guest(find(), sys.argv[1], sys.argv[2]), indent=1))
    except (Unavailable, WorkerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
