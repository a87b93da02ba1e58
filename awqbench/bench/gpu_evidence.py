"""What is known of the CUDA kernels: compiled, run by an interpreter, and timed if a GPU was there.

Records of the repository, read by name. An absent record is data: it says what writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.bench.evidence_records import Evidence, newest_run
from awqbench.bench.gpu_model import NOT_COUNTED
from awqbench.bench.records import read_records
from awqbench.gemm.cuda_programs import programs, sources_digest

if TYPE_CHECKING:
    import pandas as pd

# The classes that the interpreter sorts instructions into.
_CLASSES = ("mma", "memory", "logic", "integer", "float", "control")
_INTERPRETER = "PYTHONPATH=tests python -m ptx.{} --out"
# What writes each record, and the columns that it must have.
_SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cuda_compile": (
        "python benchmarks/cuda_compile.py --write",
        ("kernel", "arch", "programs", "median_s", "max_registers", "spill_bytes"),
    ),
    "ptx_proof": (_INTERPRETER.format("prove"), ("kernel", "arch", "programs", "exact")),
    "ptx_planted": (_INTERPRETER.format("kill"), ("kernel", "bug", "seen", "killed")),
    "ptx_traffic": (
        _INTERPRETER.format("traffic"),
        (
            "kernel", "program", "arch", "m", "n", "k", "bits", "dtype", "group_size",
            "bytes_per_weight", "codes_sector_ratio", "meta_sector_ratio", "x_sector_ratio",
            "y_sector_ratio", "bank_conflict_ratio", "instructions_per_word",
            *(f"{name}_per_word" for name in _CLASSES),
        ),
    ),
}  # fmt: skip
GPU_COMMAND = "python benchmarks/gpu_all.py --write data/records/gpu_gemm.jsonl"
NOT_RUN = "Not run on a GPU."


class GpuRun(NamedTuple):
    """The newest run on a GPU: rows, device, date, commit, ceilings; no rows if there is none."""

    rows: pd.DataFrame
    device: str
    date: str
    commit: str
    ceilings: dict[str, Any]

    @property
    def text(self) -> str:
        """Where and when the rows were measured, or that nothing was."""
        if self.rows.empty:
            return f"{NOT_RUN} On a machine with one: {GPU_COMMAND}"
        return f"Measured on {self.device}, {self.date}, commit {self.commit}"


def read_gpu_evidence(name: str, folder: str | Path) -> Evidence:
    """Return the newest run of "cuda_compile", "ptx_proof", "ptx_planted" or "ptx_traffic".

    Raises
    ------
    FormatError
        If a file is there and cannot be read, or lacks a column.
    """
    command, columns = _SOURCES[name]
    return newest_run(Path(folder) / f"{name}.jsonl", f"{command} {name}.jsonl", columns)


def read_gpu_run(folder: str | Path) -> GpuRun:
    """Return the newest run of the GPU benchmark that has rows.

    Raises
    ------
    FormatError
        If the file cannot be read.
    """
    import pandas as pd

    file = Path(folder) / "gpu_gemm.jsonl"
    runs = [run for run in (read_records(file) if file.is_file() else []) if run["rows"]]
    if not runs:
        return GpuRun(pd.DataFrame(), "", "", "", {})
    newest = runs[-1]
    return GpuRun(
        pd.DataFrame(newest["rows"]),
        newest["ceilings"]["device"],
        newest["finished"][:10],
        (newest["machine"]["git_commit"] or "unknown")[:10],
        newest["ceilings"],
    )


def is_current(evidence: Evidence) -> bool:
    """Tell whether a record was made from the kernels' sources as they are now."""
    return evidence.settings.get("sources") == sources_digest()


def proof_table(compiled: pd.DataFrame, proof: pd.DataFrame, planted: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each kernel: what was compiled, proven and planted.

    Parameters
    ----------
    compiled, proof, planted : DataFrame
        Rows of the records of these names.

    Returns
    -------
    DataFrame
        By kernel: `archs` and `programs` compiled, the most `registers` of a thread, bytes
        `spilled`, programs `run` and found `exact`, `bugs` planted and `found`. A last row "all".
    """
    import pandas as pd

    by_kernel = compiled.groupby("kernel", sort=False)
    table = pd.DataFrame(
        {
            "archs": by_kernel["arch"].nunique(),
            "programs": by_kernel["programs"].sum(),
            "registers": by_kernel["max_registers"].max(),
            "spilled": by_kernel["spill_bytes"].sum(),
            "run": proof.groupby("kernel")["programs"].sum(),
            "exact": proof.groupby("kernel")["exact"].sum(),
        }
    )
    bugs = planted.assign(kernel=[_full_name(kernel, table.index) for kernel in planted["kernel"]])
    table["bugs"] = bugs.groupby("kernel").size()
    table["found"] = bugs.groupby("kernel")["killed"].sum()
    table = table.reindex(list(dict.fromkeys(compiled["kernel"]))).fillna(0).astype(int)
    total = table.sum()
    total["archs"] = compiled["arch"].nunique()
    total["registers"] = table["registers"].max()
    return pd.concat([table, total.to_frame("all").T]).fillna(0).astype(int)


def _full_name(short: str, kernels: pd.Index) -> str:
    """Return the kernel that a list of bugs calls by a short name, such as "tile dequant"."""
    words = short.replace(" ", "_")
    for name in sorted(kernels, key=len):
        if name == words or name.endswith(f"_{words}") or name.startswith(f"{words}_"):
            return name
    return words


def counted(
    traffic: pd.DataFrame, *, arch: str, bits: int, group_size: int, dtype: str
) -> pd.DataFrame:
    """Return what was counted for a kind of weight: for each kernel and M its leanest shape.

    That is, the launch shape with the fewest instructions; which one is launched depends on N
    too.

    Parameters
    ----------
    traffic : DataFrame
        Rows of `ptx_traffic`.
    arch : str
        Of the GPU, such as "90a": only its kernels are kept.
    bits, group_size : int
    dtype : {"float16", "bfloat16"}
        Of the tokens.

    Returns
    -------
    DataFrame
        Empty where that kind was not counted.
    """
    kind = traffic[
        (traffic["bits"] == bits)
        & (traffic["group_size"] == group_size)
        & (traffic["dtype"] == dtype)
        & ~traffic["kernel"].str.endswith("dequant")
        & traffic["kernel"].isin({program.kernel for program in programs(arch)})
        & (arch != NOT_COUNTED)
    ]
    leanest = kind.sort_values("instructions_per_word", kind="stable")
    leanest = leanest.drop_duplicates(["kernel", "arch", "m"])
    return leanest.sort_values(["m", "kernel"], kind="stable").reset_index(drop=True)


def describe(
    proof: pd.DataFrame, traffic: pd.DataFrame, predicted: pd.DataFrame, run: GpuRun, floor: float
) -> str:
    """Answer the notebook's question in two or three sentences.

    Parameters
    ----------
    proof : DataFrame
        Of `proof_table`.
    traffic : DataFrame
        Of `counted`.
    predicted : DataFrame
        Of `predict`.
    run : GpuRun
    floor : float
        Fewest bytes a weight.
    """
    text = _proven(proof.loc["all"])
    first = predicted[predicted["shape"] == predicted["shape"].iloc[-1]].iloc[0]
    own = traffic[(traffic["kernel"] == first["kernel"]) & (traffic["m"] == first["tokens"])]
    if len(own):
        text += f"{first['kernel']} reads {own['bytes_per_weight'].iloc[0]:.3f} bytes a weight "
        text += f"where {floor:.4g} is the least. "
    text += (
        f"Predicted of {first['shape']} at M = {first['tokens']}: limited by {first['bound']}, "
        f"{first['floor_s'] * 1e6:.3g} us at the least, and at most {first['ratio']:.2g} times "
        f"the speed of fp16. "
    )
    return text + (f"{run.text}." if len(run.rows) else NOT_RUN)


def _proven(total: pd.Series) -> str:
    text = "Nothing is recorded of compiled programs here. "
    if total["programs"]:
        text = f"{total['programs']} programs compile with {total['spilled']} bytes of spills. "
    if total["run"]:
        text += f"{total['exact']} of {total['run']} give the right product in an interpreter of "
        text += "their PTX. "
    if total["bugs"]:
        text += f"It finds {total['found']} of {total['bugs']} planted bugs. "
    return text


def counted_table(counted: pd.DataFrame) -> pd.DataFrame:
    """Return bytes and ratios of `counted`, with short names, for reading.

    `codes` to `y` are sectors over the fewest that could hold what is asked for, `banks` passes
    over shared memory likewise.
    """
    ratios = {f"{part}_sector_ratio": part for part in ("codes", "meta", "x", "y")}
    ratios["bank_conflict_ratio"] = "banks"
    columns = ["kernel", "arch", "m", "bytes_per_weight", *ratios]
    return counted[columns].rename(columns=ratios).round(4).set_index("kernel")


def measured_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return measured rows with short names, for reading.

    `us` is the time of a replayed call and `eager_us` of one that is launched, in microseconds;
    `of_copy` the share of the copy's rate, `x_cublas` and `x_peer` the speed over cuBLAS and over
    the best peer.

    Parameters
    ----------
    rows : DataFrame
        Of `GpuRun`.
    """
    ratios = {"fraction_of_copy": "of_copy", "tflop_s": "tflop_s"}
    ratios |= {"vs_cublas": "x_cublas", "vs_best_peer": "x_peer"}
    table = rows[["shape", "tokens", "path"]].assign(
        us=rows["median_s"] * 1e6, eager_us=rows["eager_s"] * 1e6
    )
    table = table.join(rows[list(ratios)].rename(columns=ratios)).round(2)
    return table.assign(error=rows["rel_error"].map("{:.0e}".format))
