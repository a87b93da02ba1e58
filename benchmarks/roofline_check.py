"""Predicted against measured tokens a second, on this machine: two models, one and two threads.

Makes a record of the machine (or reads one), measures the overhead of decoding on thin models,
predicts, and times the embedded model and one of Qwen3-0.6B's shape, both at 4 bits with
native kernels. With --out the timed models are written as records beside it.

    python benchmarks/roofline_check.py [--record FILE.jsonl] [--threads 1 2] [--out FILE.jsonl]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from awqbench.bench.model_bench import Workload, rounded_folder, synthetic_folder
from awqbench.bench.model_process import ModelProcess
from awqbench.bench.overhead import Overhead, ThinModels
from awqbench.bench.predict import predict, rate_of
from awqbench.bench.record.decode import decode_record
from awqbench.bench.record.files import read_machine_records, require_new, write_records
from awqbench.bench.record.measure import Plan, measure
from awqbench.bench.token_bytes import token_bytes
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.placement.module_bytes import stored_model


def folders(place: Path) -> dict[str, Path]:
    """Make the folders at 4 bits."""
    return {
        "tiny-qwen3": rounded_folder("tiny", place / "tiny-qwen3"),
        "qwen3-0.6b": synthetic_folder(place / "qwen3-0.6b", "qwen3-0.6b"),
    }


def timed(folder: Path, threads: int, work: Workload) -> tuple[list[float], Overhead]:
    """Return seconds a token of some generations, and the overhead seen in turns with them."""
    config = open_checkpoint(folder).config
    with (
        ThinModels(config, threads=threads, workload=work) as thin,
        ModelProcess(str(folder), "native", dtype=None, threads=threads) as process,
    ):
        process.generate(work.prompt_tokens, 8)
        samples = []
        for _ in range(work.rounds):
            thin.take_turn()
            samples.append(process.generate(work.prompt_tokens, work.new_tokens).token_s)
        return samples, thin.overhead()


def main() -> None:
    """Predict, measure, and print one row for each model and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="of this machine; default: measured now")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the timed models as records here")
    options = parser.parse_args()
    if options.out:
        require_new(options.out)
    work = Workload(32, options.new_tokens, options.rounds)
    records = (
        read_machine_records(options.record)
        if options.record
        else measure(Plan(threads=tuple(options.threads)))[0]
    )
    packed = rate_of(records, "gemm", backend="native", act_dtype="int16")
    dense = rate_of(records, "dense", backend="torch")
    rows, made = [], []
    with tempfile.TemporaryDirectory(prefix="awqbench-roofline-") as place:
        for name, folder in folders(Path(place)).items():
            ckpt = open_checkpoint(folder)
            parts = token_bytes(stored_model(ckpt), context=work.prompt_tokens)
            layers = ckpt.config["num_hidden_layers"]
            for threads in options.threads:
                samples, overhead = timed(folder, threads, work)
                found = predict(
                    parts,
                    layers=layers,
                    threads=threads,
                    packed=packed,
                    dense=dense,
                    overhead=overhead,
                )
                record = decode_record(
                    records[0],
                    samples,
                    model=name,
                    quant="W4 g128",
                    backend="native",
                    threads=threads,
                    prompt_tokens=work.prompt_tokens,
                    new_tokens=work.new_tokens,
                    bytes_per_token=parts.total,
                )
                made.append(record)
                speed = 1 / record["stat"]["median_s"]
                rows.append(
                    {
                        "model": name,
                        "threads": threads,
                        "measured": speed,
                        **found._asdict(),
                        "error": found.tok_per_s / speed - 1,
                        "is_covered": found.low <= speed <= found.high,
                        "layer_us": overhead.layer_s * 1e6,
                        "step_us": overhead.step_s * 1e6,
                    }
                )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    if options.out:
        write_records(options.out, made)


if __name__ == "__main__":
    main()
