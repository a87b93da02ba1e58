"""Plant every bug of the list, one at a time, and record what each was found as.

    PYTHONPATH=tests nice python -m ptx.kill --out data/records/ptx_planted.jsonl

test_planted_bugs.py does the same in a test run; this keeps the outcome for the notebook.
"""

import argparse
import re
import time
from pathlib import Path

import pandas as pd

from awqbench.bench.records import append_record, make_record
from awqbench.gemm import cuda_nvrtc, cuda_programs
from awqbench.progress import progress_bar
from ptx.faults import PtxFault
from ptx.planted import BUGS


def killed_table(names):
    """Return a row for each bug: in which kernel, how it was found, whether as expected."""
    rows = []
    for name in progress_bar(names, "planting", unit="bug"):
        run, pattern, replacement, kinds = BUGS[name]
        try:
            seen = run((pattern, replacement))
        except PtxFault as fault:
            seen = type(fault).__name__
        kernel, bug = name.split(": ", 1)
        rows.append((kernel, bug, seen, bool(re.fullmatch(kinds, seen))))
    return pd.DataFrame(rows, columns=["kernel", "bug", "seen", "killed"])


def main():
    """Write the record; print what was not found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    out = parser.parse_args().out
    started, sources = time.perf_counter(), cuda_programs.sources_digest()
    table = killed_table(list(BUGS))
    if cuda_programs.sources_digest() != sources:
        raise SystemExit("kernels/ changed while bugs were planted: run it again")
    settings = {
        "nvrtc": cuda_nvrtc.version(),
        "sources": sources,
        "interpreter_s": round(time.perf_counter() - started, 1),
    }
    append_record(out, make_record("ptx_planted", table, settings))
    print(f"{table['killed'].sum()} of {len(table)} found")
    for row in table[~table["killed"]].itertuples():
        print(f"{row.kernel}: {row.bug}: {row.seen}")


if __name__ == "__main__":
    main()
