"""Cycles of the kernels' inner loops as llvm-mca predicts them, for cores with their own model.

The loops are those of the compiled kernels: cut out of the compiler's assembly, nothing added.
llvm-mca gives two numbers for a loop: cycles of its out-of-order simulation, and the bound of
the busiest unit ("reciprocal throughput"). Neither is a measurement; a band between both is
shown, with the error that the same method has where the loop can also be measured. All data is
taken to lie in the first cache, so this says nothing of memory.

LLVM describes many processors with the scheduling model of another. What a model was made for
shows in the names of its units, and a borrowed one is refused.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from awqbench.errors import StaticModelError

# How the units of a core's own model are named in LLVM, by processor type.
CORES = {
    "aarch64": {
        "neoverse-n1": "N1Unit",
        "neoverse-n2": "N2Unit",
        "neoverse-n3": "N3Unit",
        "neoverse-v1": "V1Unit",
        "neoverse-v2": "V2Unit",
        "neoverse-v3": "V3Unit",
        "ampere1": "Ampere1Unit",
        "ampere1b": "Ampere1BUnit",
    },
    "x86_64": {
        "icelake-server": "ICX",
        "sapphirerapids": "SPR",
        "znver3": "Zn3",
        "znver4": "Zn4",
    },
}
# Levels of kernels/native_*.cpp that a core can run. 128-bit SVE is not among them.
_V1 = ("sve-256", "neon-i8mm", "neon-dotprod", "neon")
LEVELS = {
    "neoverse-n1": ("neon-dotprod", "neon"),
    "neoverse-v1": _V1,
    "ampere1": _V1[1:],
    "znver3": ("avx2",),
    **dict.fromkeys(
        ("neoverse-n2", "neoverse-n3", "neoverse-v2", "neoverse-v3", "ampere1b"), _V1[1:]
    ),
    **dict.fromkeys(("icelake-server", "sapphirerapids", "znver4"), ("avx512-vnni", "avx2")),
}
# Beyond this the two numbers of a loop contradict each other, and one is wrong: the model of
# Sapphire Rapids gave 4.4 times the measured cycles for a loop with a zeroed register.
MOST_APART = 3.0
_ITERATIONS = 200
_BLANK = {"aarch64": "add x0, x0, x1", "x86_64": "addq %rax, %rbx"}  # for llvm-mca to look at
_TIME_LIMIT_S = 60


class Loop(NamedTuple):
    """The inner loop of a tile of tokens.

    `kernel` as in kernels/*.h; `bits` of the codes, 0 where they lie unpacked in scratch;
    `tokens` in the tile; `weights` that one turn multiplies by each of them.
    """

    kernel: str
    bits: int
    tokens: int
    weights: int
    lines: tuple[str, ...]

    @property
    def instructions_per_1024(self) -> float:
        """Instructions for 1024 weights and all tokens of the tile."""
        return len([line for line in self.lines if is_instruction(line)]) * 1024 / self.weights


# Activations of kernels/native_panel.h and native_arm_bytes.h.
ACTIVATIONS = {
    "PairKernel": "int16",
    "DotKernel<2>": "int16",
    "MatrixKernel<2>": "int16",
    "QuadKernel": "int8",
    "DotKernel<1>": "int8",
    "MatrixKernel<1>": "int8",
    "FloatKernel": "float32",
}


class Band(NamedTuple):
    """Cycles for 1024 weights and all tokens of the tile: simulated, and bound by a unit."""

    simulated: float
    bound: float


_TILE = re.compile(
    r"^_ZN12_GLOBAL__N_1\d+(?P<kernel>\w+?Kernel)(?:ILi(?P<planes>\d)EE)?4tileI"
    r"NS_6SourceILi(?P<bits>\d)ELb(?P<keep>[01])EEELi(?P<tokens>\d+)EEEvRKNS_4TileEi:"
)
# Products of a weight by one token, in one lane of a register: (mnemonic, products for each 32
# bits of the widest register named). Bytes of an int16 activation's two planes count half.
_PRODUCTS = {
    "vpmaddwd": 2, "vpdpwssd": 2, "vpdpbusd": 4, "sdot": 4, "smmla": 8, "smull": 1, "smull2": 1,
    "fmla": 1, "fmad": 1, "fmls": 1,
}  # fmt: skip
_X86_FMA = re.compile(r"^vfmadd\d+ps$")


def is_instruction(line: str) -> bool:
    """Return whether a line of assembly is an instruction: no label, directive or comment."""
    text = line.strip()
    return bool(text) and not text.endswith(":") and text[0] not in ".#/@"


def find_loops(assembly: str, *, sve_bits: int = 128) -> list[Loop]:
    """Cut the inner loops of all tiles out of a compiled level.

    Parameters
    ----------
    assembly : str
        What ``-S`` writes of a kernels/native_<level>.cpp.
    sve_bits : int
        Length of an SVE register.

    Returns
    -------
    list of Loop
        Of tiles that keep nothing in scratch; in the order of the assembly.
    """
    loops = []
    lines = assembly.splitlines()
    for start, line in enumerate(lines):
        match = _TILE.match(line)
        if match is None or match["keep"] == "1":
            continue
        body = _inner_loop(lines[start + 1 :])
        planes = int(match["planes"] or 1)
        tokens = int(match["tokens"])
        products = sum(_products(text, sve_bits) for text in body)
        weights, rest = divmod(products, planes * tokens)
        if products and not rest:
            name = match["kernel"] + (f"<{planes}>" if match["planes"] else "")
            loops.append(Loop(name, int(match["bits"]), tokens, weights, tuple(body)))
    return loops


def telling_loops(loops: list[Loop]) -> list[Loop]:
    """Return those that a user waits for, of 4 bits: one token, and the largest tile."""
    chosen = []
    for kernel in dict.fromkeys(loop.kernel for loop in loops):
        own = [loop for loop in loops if loop.kernel == kernel]
        chosen += [loop for loop in own if loop.bits == 4 and loop.tokens == 1]
        kept = [loop for loop in own if loop.bits == 0]
        chosen += [max(kept, key=lambda loop: loop.tokens)] if kept else []
    return chosen


def _inner_loop(lines: list[str]) -> list[str]:
    """Return the loop of a function that multiplies most, from its label to its branch."""
    labels: dict[str, int] = {}
    best: list[str] = []
    for at, line in enumerate(lines):
        if line.startswith("\t.size") or _TILE.match(line):
            break
        if line.startswith(".L") and line.endswith(":"):
            labels[line[:-1]] = at
            continue
        target = line.split()[-1] if line.strip() else ""
        if target in labels:  # a branch back
            body = lines[labels[target] + 1 : at + 1]
            if sum(_products(text, 128) for text in body) > sum(_products(t, 128) for t in best):
                best = body
    return best


def _products(line: str, sve_bits: int) -> int:
    words = line.split(None, 1)
    if len(words) < 2 or not is_instruction(line):
        return 0
    name, operands = words
    each = 1 if _X86_FMA.match(name) else _PRODUCTS.get(name, 0)
    if "%zmm" in operands:
        lanes = 16
    elif "%ymm" in operands:
        lanes = 8
    else:
        lanes = (sve_bits if re.match(r"z\d", operands) else 128) // 32
    return each * lanes


def require_own_model(mca: str | Path, processor: str, core: str) -> None:
    """Raise unless LLVM has a scheduling model that was made for a core.

    Raises
    ------
    StaticModelError
        If the model is another core's, or not checked; lists cores with their own.
    """
    known = CORES.get(processor, {})
    expected = known.get(core)
    units = _analyse(mca, processor, core, [_BLANK[processor]])["TargetInfo"]["Resources"]
    first = units[0].split(".")[0]
    if expected is None or not all(unit.startswith(expected) for unit in units):
        raise StaticModelError(
            f"LLVM schedules {core} with units such as {first}: a model that was not made for it, "
            f"or was not checked. Cores of {processor} with their own: {', '.join(known)}."
        )


def analyse_loop(mca: str | Path, processor: str, core: str, loop: Loop) -> Band:
    """Return what llvm-mca says of a loop.

    Parameters
    ----------
    mca : str or Path
        The command llvm-mca.
    processor : {"aarch64", "x86_64"}
    core : str
        As LLVM names it.
    loop : Loop

    Returns
    -------
    Band

    Raises
    ------
    StaticModelError
        If LLVM has no model of the core's own, or does not know an instruction of the loop, or
        the two numbers contradict each other.
    """
    require_own_model(mca, processor, core)
    summary = _analyse(mca, processor, core, loop.lines)["CodeRegions"][0]["SummaryView"]
    scale = 1024 / loop.weights
    band = Band(
        summary["TotalCycles"] / summary["Iterations"] * scale,
        summary["BlockRThroughput"] * scale,
    )
    if band.simulated > MOST_APART * band.bound:
        raise StaticModelError(
            f"for {core} llvm-mca simulates {band.simulated:.0f} cycles where its units need "
            f"{band.bound:.0f}: more than {MOST_APART:g} times as many, so one is wrong."
        )
    return band


def mca_version(mca: str | Path) -> str:
    """Return the version of LLVM, such as "22.1.8"."""
    text = _run([str(mca), "--version"], "")
    return re.search(r"LLVM version (\S+)", text)[1]


def host_core(mca: str | Path) -> str:
    """Return what LLVM takes this processor for, such as "znver4"."""
    text = _run([str(mca), "--version"], "")
    return re.search(r"Host CPU: (\S+)", text)[1]


def _analyse(mca: str | Path, processor: str, core: str, lines: Iterable[str]) -> dict:
    text = "\n".join(line for line in lines if is_instruction(line)) + "\n"
    triple = f"{processor}-linux-gnu"
    command = [str(mca), f"-mtriple={triple}", f"-mcpu={core}", f"-iterations={_ITERATIONS}"]
    try:
        return json.loads(_run([*command, "--json"], text))
    except json.JSONDecodeError as error:
        raise StaticModelError(f"llvm-mca gave no JSON for {core}: {error}.") from error


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StaticModelError(f"{command[0]} cannot be run: {error}.") from error
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise StaticModelError(f"llvm-mca refuses the loop with {command[-3]}: {first}")
    return done.stdout
