"""Compare this processor with emulated ARM ones: digests, errors to float64, conversions.

python benchmarks/arm_emulated.py [--out data/records]

Writes arm_digests.jsonl and arm_semantics.jsonl. Emulation says what is computed, and nothing of
time. Needs tests/arm/toolchain.py; about a minute.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from awqbench.bench.records import append_record, make_record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "arm"))
import run_emulated  # noqa: E402
import toolchain  # noqa: E402

EXACT = ("golden", "quantize", "nonfinite")


def digest_rows(here: dict, arm: dict, wide: dict) -> list[dict]:
    """Return what was compared: how many results of a kind, and how many are the same bits."""
    rows = []
    for part in EXACT:
        same = sum(arm[part][name] == value for name, value in here[part].items())
        rows.append(_row(part, "decode or quantize", len(here[part]), same))
    for backend in ("numpy", "numexpr"):
        errors = [value for name, value in arm["gemm"].items() if name.startswith(backend)]
        rows.append(_row(backend, "product", len(errors), None, max(errors)))
    fused = next(level for level in here["native"]["levels"] if level != "portable")
    for level in wide["native"]["levels"]:
        other = "portable" if level == "portable" else fused
        for activations in ("int16", "float32", "int8"):
            prefix = f"{level}, {activations}, "
            errors = [v for k, v in wide["native"]["errors"].items() if k.startswith(prefix)]
            found = {k: v for k, v in wide["native"]["digests"].items() if k.startswith(prefix)}
            same = sum(
                value == here["native"]["digests"][name.replace(level, other, 1)]
                for name, value in found.items()
            )
            name = f"native {level}, {activations}"
            rows.append(_row(name, f"product, beside {other}", len(found), same, max(errors)))
    return rows


def _row(name, what, results, same, error=None) -> dict:
    return {"provenance": "emulated", "name": name, "what": what, "results": results,
            "same_bits": same, "largest_error": error}  # fmt: skip


def semantics_rows(here: dict, arm: dict) -> list[dict]:
    """Return a row for each operation, with what both processors give."""
    return [
        {"provenance": "emulated", "operation": name, "x86_64": str(value),
         "aarch64": str(arm["semantics"][name]), "is_same": value == arm["semantics"][name]}
        for name, value in here["semantics"].items()
    ]  # fmt: skip


def main() -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        tools = toolchain.find()
    except toolchain.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    parts = ",".join(EXACT) + ",gemm,semantics"
    here = run_emulated.run_here(parts + ",native")["result"]
    arm = run_emulated.run_guest(tools, run_emulated.DOTPROD, parts)["result"]
    wide = run_emulated.run_guest(tools, run_emulated.MAX_256, "native")["result"]
    tables = {
        "arm_digests": pd.DataFrame(digest_rows(here, arm, wide)),
        "arm_semantics": pd.DataFrame(semantics_rows(here, arm)),
    }
    settings = {"exact_and_arrays": run_emulated.DOTPROD, "native": run_emulated.MAX_256}
    for name, table in tables.items():
        print(table.drop(columns="provenance").to_string(index=False), end="\n\n")
        if options.out is not None:
            append_record(options.out / f"{name}.jsonl", make_record(name, table, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
