"""An aarch64 emulator, its Python and a cross compiler, from Debian and PyPI; nothing installed.

    python tests/arm/toolchain.py [--with-mca]

fetches them (about 150 MB) into the user's cache, `$XDG_CACHE_HOME/awqbench/arm`: packages are
downloaded by apt-get with lists of its own and unpacked by dpkg, which needs no root and
changes nothing of the system. Tests use what lies there and download nothing.
"""

import argparse
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

EMULATOR = ("qemu-user-static", "g++-aarch64-linux-gnu")
GUEST = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("numpy", "numexpr", "regex", "threadpoolctl")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_TIME_LIMIT_S = 300


class Unavailable(Exception):
    """The emulator cannot be had here; says why."""


class Toolchain(NamedTuple):
    """Where the parts lie; `cxx` and `objdump` are commands."""

    qemu: Path
    root: Path
    python: Path
    site: Path
    cxx: Path
    objdump: Path
    cache: Path

    def environment(self) -> dict[str, str]:
        """Variables for a process under the emulator: it can compile with the host's speed."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {
            "CXX": str(self.cxx),
            "XDG_CACHE_HOME": str(self.cache / "guest"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # With the tier "max" OpenBLAS takes SME kernels, which are emulated very slowly.
            "OPENBLAS_CORETYPE": "NEOVERSEN1",
        }

    def command(self, cpu: str, *words: str) -> list[str]:
        """Return the command that runs a program of the guest on a processor type."""
        return [str(self.qemu), "-cpu", cpu, "-L", str(self.root), *map(str, words)]


def cache_folder() -> Path:
    """Return the folder that everything lies in."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "awqbench" / "arm"


def find() -> Toolchain:
    """Return what was fetched.

    Raises
    ------
    Unavailable
        If a part is missing; says how to get it.
    """
    cache = cache_folder()
    pythons = sorted((cache / "guest-root").glob("usr/bin/python3.[0-9]*"))
    parts = [cache / "emulator" / "usr/bin/qemu-aarch64-static", cache / "aarch64-g++"]
    missing = [path.name for path in parts if not path.exists()]
    if not pythons or not _has_wheels(cache / "site") or missing:
        raise Unavailable(
            f"no aarch64 emulator in {cache}; python tests/arm/toolchain.py fetches it (150 MB)"
        )
    return Toolchain(
        parts[0], cache / "guest-root", pythons[-1], cache / "site", parts[1],
        cache / "aarch64-objdump", cache,
    )  # fmt: skip


def find_mca() -> Path:
    """Return the command of llvm-mca. (The system's may be too old to know ARM's server cores.)

    Raises
    ------
    Unavailable
        If there is none.
    """
    path = cache_folder() / "llvm-mca"
    if path.exists():
        return path
    raise Unavailable(f"no llvm-mca in {path.parent}; python tests/arm/toolchain.py --with-mca")


def fetch(*, with_mca: bool = False) -> Toolchain:
    """Download and unpack what is not there yet.

    Raises
    ------
    Unavailable
        If a tool or the network is missing, or a download fails.
    """
    if platform.machine() != "x86_64":
        raise Unavailable(f"the packages are fetched for x86_64, and this is {platform.machine()}")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is needed to fetch the emulator (Debian, Ubuntu)")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    _unpack_packages(EMULATOR, cache / "emulator", guest=False)
    _unpack_packages(GUEST, cache / "guest-root", guest=True)
    _write_wrapper(cache, "aarch64-g++", "aarch64-linux-gnu-g++", "--sysroot")
    _write_wrapper(cache, "aarch64-objdump", "aarch64-linux-gnu-objdump")
    _download_wheels(cache)
    if with_mca:
        fetch_mca()
    return find()


def fetch_mca() -> Path:
    """Download llvm-mca of the newest LLVM that Debian has here.

    Raises
    ------
    Unavailable
        As `fetch`.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "llvm").exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            config = _apt_config(Path(scratch), guest=False)
            _run(["apt-get", "update", "-qq"], APT_CONFIG=config)
            names = _run(
                ["apt-cache", "search", "--names-only", "^llvm-[0-9]+$"], APT_CONFIG=config
            ).split("\n")
        found = [int(line.split()[0].removeprefix("llvm-")) for line in names if line]
        if not found:
            raise Unavailable("the package lists have no llvm")
        _unpack_packages((f"llvm-{max(found)}",), cache / "llvm", guest=False)
    program = sorted((cache / "llvm").glob("usr/lib/llvm-*/bin/llvm-mca"))[-1]
    _write_script(cache / "llvm-mca", cache / "llvm", str(program))
    return cache / "llvm-mca"


def _apt_config(folder: Path, *, guest: bool) -> str:
    """Write a configuration with lists and downloads of its own; return its path."""
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    status = folder / "status"
    status.touch()
    lines = [
        f'Dir::State "{folder}/state";',
        f'Dir::Cache "{folder}/cache";',
        'APT::Sandbox::User "";',
        # What the system has need not be fetched for it; the guest has nothing.
        f'Dir::State::status "{status if guest else "/var/lib/dpkg/status"}";',
    ]
    if guest:
        lines += ['APT::Architecture "arm64";', 'APT::Architectures { "arm64"; };']
    config = folder / "apt.conf"
    config.write_text("\n".join(lines) + "\n")
    return str(config)


def _unpack_packages(packages: tuple[str, ...], target: Path, *, guest: bool) -> None:
    """Unpack packages, and what they depend on and the system lacks, into a folder."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        config = _apt_config(folder, guest=guest)
        _run(["apt-get", "update", "-qq"], APT_CONFIG=config)
        wanted = ["apt-get", "install", "--no-install-recommends", "--print-uris", "-qq"]
        lines = _run([*wanted, *packages], APT_CONFIG=config).splitlines()
        files = [line.split()[1] for line in lines if line.startswith("'")]
        names = {file.split("_")[0] for file in files} | set(packages)
        _run(["apt-get", "download", "-qq", *sorted(names)], folder / "packages", APT_CONFIG=config)
        for package in sorted((folder / "packages").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder / "root")])
        os.replace(folder / "root", target)


def _pip(folder: Path) -> list[str]:
    """Return the command of pip: this Python's, or that of a new environment in `folder`."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    _run([sys.executable, "-m", "venv", str(folder / "venv")])
    return [str(folder / "venv/bin/python"), "-m", "pip"]


def _has_wheels(site: Path) -> bool:
    return all((site / name).is_dir() or (site / f"{name}.py").exists() for name in WHEELS)


def _download_wheels(cache: Path) -> None:
    """Unpack the guest's packages of PyPI."""
    site = cache / "site"
    if _has_wheels(site):
        return
    shutil.rmtree(site, ignore_errors=True)
    version = sorted((cache / "guest-root").glob("usr/bin/python3.[0-9]*"))[-1].name[6:]
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        folder = Path(scratch)
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        _run(
            [*_pip(folder), "download", "-q", "--no-deps", "--only-binary=:all:",
             *platforms, "--python-version", version, "--abi", "cp" + version.replace(".", ""),
             "--dest", str(folder / "wheels"), *WHEELS]
        )  # fmt: skip
        for wheel in (folder / "wheels").glob("*.whl"):
            shutil.unpack_archive(wheel, folder / "site", "zip")
        os.replace(folder / "site", site)


def _write_wrapper(cache: Path, name: str, program: str, sysroot: str = "") -> None:
    root = cache / "emulator"
    path = root / "usr/bin" / program
    if not path.exists():  # the system has it
        path = Path(shutil.which(program) or path)
        sysroot = ""
    if not path.exists():
        raise Unavailable(f"the packages hold no {program}")
    _write_script(cache / name, root, str(path), *([f"{sysroot}={root}"] if sysroot else []))


def _write_script(target: Path, root: Path, *command: str) -> None:
    """Write a program that runs `command` with the libraries of an unpacked root."""
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"
    words = " ".join(f"'{word}'" for word in command)
    text = f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {words} "$@"\n'
    if target.exists() and target.read_text() == text:
        return  # keeps its time, by which a compiler that was updated is known
    target.write_text(text)
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _run(command: list[str], folder: Path | None = None, **variables: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | variables, capture_output=True, text=True,
            timeout=_TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} failed: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"{' '.join(command[:3])} failed: {''.join(said)}")
    return done.stdout


def main() -> int:
    """Fetch, and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with-mca", action="store_true", help="also llvm-mca (44 MB)")
    options = parser.parse_args()
    try:
        print(fetch(with_mca=options.with_mca).cache)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
