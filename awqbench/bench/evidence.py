"""What is known of x86 and ARM, of every kind of evidence, in tables for one notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.bench.literature import published_rows, published_sweeps, read_literature
from awqbench.bench.predict import NO_OVERHEAD, Rate, predict, rate_of, rate_of_sweep
from awqbench.bench.record.check import Record
from awqbench.bench.synthetic import MODELS
from awqbench.bench.throughput import ROW, predicted_row, record_rows
from awqbench.bench.token_bytes import TokenBytes, token_bytes
from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.parallel.plan import read_config
from awqbench.inspect.placement.module_bytes import ModelBytes, predicted_model, stored_model
from awqbench.quantize.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

# A rate is of models of about the size that it was measured with.
_SIZE_REACH = 4


class Case(NamedTuple):
    """A model that is predicted: its tensors' sizes, how it is quantized, tokens it holds."""

    sizes: ModelBytes
    quant: str
    context: int

    @property
    def parts(self) -> TokenBytes:
        """Bytes that a token reads."""
        return token_bytes(self.sizes, context=self.context)


def open_case(model: str | Path, *, bits: int = 4, group_size: int = 128, context: int = 0) -> Case:
    """Take a model's sizes at so many bits; nothing is quantized and no weight is read.

    Parameters
    ----------
    model : str or Path
        A shape that `synthetic.MODELS` has, such as ``"qwen3-0.6b"``, or what `read_config`
        takes.
    bits, group_size : int
        Of its linears, if the model is not quantized; else they are as it says.
    context : int
        Tokens that the sequence holds.

    Raises
    ------
    FormatError, ParameterError, AlignmentError
        As `predicted_model`.
    """
    source = MODELS[model] if model in MODELS else read_config(model)
    name = str(model) if model in MODELS else ""
    if isinstance(source, Checkpoint) and source.quantization is not None:
        return Case(stored_model(source), "as stored", context)
    if isinstance(source, Mapping) and {"quantization_config", "quantization_bit"} & set(source):
        return Case(predicted_model(source, name=name), "as in its config", context)
    settings = Settings(bits=bits, group_size=group_size)
    quant = f"W{bits} g{group_size}"
    return Case(predicted_model(source, settings, name=name), quant, context)


def gather(
    case: Case,
    records: Sequence[Record],
    *,
    include_published: bool = True,
    include_predicted: bool = True,
    isa_filter: Sequence[str] = (),
) -> pd.DataFrame:
    """Return every row of tokens a second that there is evidence for.

    Parameters
    ----------
    case : Case
        What is predicted.
    records : sequence of dict
        Of machines, by `throughput.read_folder`.
    include_published : bool
        Without them there are no predictions from published sweeps either.
    include_predicted : bool
    isa_filter : sequence of str
        Architectures to keep; all by default.

    Returns
    -------
    DataFrame
        Columns `throughput.ROW`; `attrs["not_predicted"]` says of what there is no prediction.
    """
    import pandas as pd

    not_predicted: list[str] = []
    tables = [record_rows(records)]
    sweeps = published_sweeps() if include_published else {}
    if include_published:
        tables.append(published_rows())
    if include_predicted:
        predicted = predicted_rows(case, records, sweeps)
        not_predicted = predicted.attrs["not_predicted"]
        tables.append(predicted)
    table = pd.concat([t for t in tables if len(t)] or [pd.DataFrame(columns=list(ROW))])
    kept = table["arch"].isin(isa_filter) if isa_filter else table["arch"].notna()
    table = table[kept].reset_index(drop=True)
    table.attrs["not_predicted"] = not_predicted
    return table


def predicted_rows(
    case: Case, records: Sequence[Record], sweeps: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Predict a model on every machine with records, and on those of published sweeps.

    On a recorded machine from its native kernel and dense product at the most threads it was
    recorded with; what a token costs beside reading is not in a record, so that this is a bound
    from above. From a sweep by the fit of `roofline`, where the size of its file is known.

    Returns
    -------
    DataFrame
        Columns `throughput.ROW`; `attrs["not_predicted"]` lists in words what was left out: a
        model that lies in the caches, or is of another size than the sweep's by a factor of
        four.
    """
    import pandas as pd

    nbytes, rows, left_out = case.parts.total, [], []
    for own in _by_machine(records):
        buffer_bytes = own[0]["bandwidth"]["buffer_bytes"]
        if nbytes < buffer_bytes:
            left_out.append(
                f"{own[0]['machine']['cpu']}: {nbytes / 1e6:.0f} MB a token may come from caches; "
                f"what was read from memory were {buffer_bytes / 1e6:.0f} MB"
            )
            continue
        rows.append(_from_machine(case, own))
    for name, sweep in sweeps.items():
        file_gb = float(sweep["file_gb"].iloc[0])
        if not file_gb / _SIZE_REACH <= nbytes / 1e9 <= file_gb * _SIZE_REACH:
            size = f"is {file_gb:.2f} GB" if file_gb == file_gb else "is of unknown size"
            left_out.append(f"{name}: its model {size}, this one {nbytes / 1e9:.3g} GB a token")
            continue
        rows.append(_from_sweep(name, sweep, case))
    table = pd.DataFrame(rows, columns=list(ROW))
    table.attrs["not_predicted"] = left_out
    return table


def _by_machine(records: Sequence[Record]) -> list[list[Record]]:
    """Return the timed records of each machine whose memory and kernels were timed."""
    timed = [record for record in records if record["provenance"] != "emulated"]
    ids = dict.fromkeys(r["machine"]["id"] for r in timed if r["case"]["kernel"] == "read")
    return [[r for r in timed if r["machine"]["id"] == one] for one in ids]


def _from_machine(case: Case, own: list[Record]) -> dict[str, Any]:
    packed, dense, how = _rates(own)
    threads = max(r["case"]["threads"] for r in own if r["case"]["kernel"] == "read")
    # Without an overhead the number of layers plays no part.
    found = predict(case.parts, layers=0, threads=threads, packed=packed, dense=dense)
    machine = own[0]["machine"]
    return _row(
        found, case, machine["arch"], machine["cpu"], threads,
        max(own[0]["bandwidth"]["read_gb_s"].values()), f"records of the machine: {how}",
    )  # fmt: skip


def _rates(records: list[Record]) -> tuple[Rate, Rate, str]:
    """Return the rates of the fastest product of packed weights, and of a dense one."""
    backends = {
        kernel: dict.fromkeys(
            r["case"]["backend"] for r in records if r["case"]["kernel"] == kernel
        )
        for kernel in ("gemm", "dense")
    }
    # By what is exact to float16's own error; int8 activations are another trade.
    packed_by = next(b for b in ("native", "torch", "numexpr", "numpy") if b in backends["gemm"])
    dense_by = next(b for b in ("torch", "numpy") if b in backends["dense"])
    kind = "int16" if packed_by == "native" else ""
    packed = rate_of(records, "gemm", backend=packed_by, act_dtype=kind)
    return packed, rate_of(records, "dense", backend=dense_by), f"{packed_by} and {dense_by}"


def _from_sweep(name: str, sweep: pd.DataFrame, case: Case) -> dict:
    rate, threads = rate_of_sweep(sweep), int(sweep["threads"].max())
    # All by one rate: what it is wrong by, all parts are wrong by.
    whole = TokenBytes(case.parts.total, 0, 0, 0, 0)
    found = predict(whole, layers=0, threads=threads, packed=rate, dense=rate, overhead=NO_OVERHEAD)
    chip = name.split(",")[0]
    peak = nominal_gb_s().get(chip, float("nan"))
    source = f"fit of {sweep['source'].iloc[0]}"
    shown = name.rpartition(",")[0]
    return _row(found, case, sweep["arch"].iloc[0], shown, threads, peak, source)


def _row(found, case, arch, chip, threads, bandwidth_gb_s, source) -> dict:
    return predicted_row(
        found, arch=arch, chip=chip, model=case.sizes.name, quant=case.quant, threads=threads,
        bytes_per_token=case.parts.total, bandwidth_gb_s=bandwidth_gb_s, source=source,
    )  # fmt: skip


def program_spread(table: pd.DataFrame) -> pd.DataFrame:
    """Return by how much programs differ where one author timed several on one machine.

    Parameters
    ----------
    table : DataFrame
        Of `gather`.

    Returns
    -------
    DataFrame
        A row for each published chip, model, quantization and number of threads that two or
        more programs were timed with: these, `arch`, `slowest` and `fastest` (tokens a second),
        `ratio`, and `source`; largest ratio first.
    """
    rows = table[table["provenance"] == "published"]
    keys = ["arch", "chip", "model", "quant", "threads", "source"]
    found = rows.groupby(keys)["tok_per_s"].agg(slowest="min", fastest="max")
    found = found[rows.groupby(keys)["software"].nunique() > 1]
    found["ratio"] = found["fastest"] / found["slowest"]
    return found.sort_values("ratio", ascending=False, kind="stable").reset_index()


def nominal_gb_s() -> dict[str, float]:
    """Return what makers say of memory, GB/s, by the chip's name without what is in brackets."""
    table = read_literature()
    known = table[table["peak_GBps"].notna()]
    names = known["chip"].str.split(r" \(|,", regex=True).str[0]
    return dict(zip(names, known["peak_GBps"], strict=True))


def per_bandwidth(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows with `per_gb_s`: tokens a second that a GB/s of memory gives a 1 GB model.

    That is what a token reads times tokens a second, over the bandwidth: at most 1, whatever
    the model. The bandwidth is the one that was measured on that machine or, for a published
    row without, the nominal one, which `chip` then says and which no program reaches.

    Parameters
    ----------
    table : DataFrame
        Of `gather`.

    Returns
    -------
    DataFrame
        The best published row of each chip and model, and all others, with `per_gb_s`;
        `attrs["left_out"]` counts published rows whose bandwidth or size is not known.
    """
    import pandas as pd

    short = table["chip"].str.split(r" \(|,", regex=True).str[0]
    nominal = short.map(nominal_gb_s())
    is_published = table["provenance"] == "published"
    is_sweep = table["source"].str.startswith("fit of") & (table["provenance"] == "predicted")
    measured = table["bandwidth_gb_s"].notna() & ~is_sweep
    found = table.assign(
        bandwidth_gb_s=table["bandwidth_gb_s"].where(measured, nominal),
        chip=table["chip"].where(measured, table["chip"] + ", nominal GB/s"),
    )
    found["per_gb_s"] = found["gb_s"] / found["bandwidth_gb_s"]
    known = found["per_gb_s"].notna()
    others = found[known & ~is_published]
    best = found[known & is_published].sort_values("per_gb_s").groupby(["chip", "model"]).tail(1)
    kept = pd.concat([others, best], ignore_index=True)
    kept.attrs["left_out"] = int((~known & is_published).sum())
    return kept
