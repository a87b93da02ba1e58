"""Reading and converting take the memory of a linear, not of the folder."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "read_memory.py"


def test_memory_is_that_of_one_linear():
    run = subprocess.run(
        [sys.executable, SCRIPT, "--size-mb", "180"], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    assert found["linears"] == 21 and found["folder_mb"] > 175
    assert found["reading_mb"] < 60
    # 16.8 million codes of one linear as 32-bit words while they are packed, and once more
    # while they are read back and compared.
    assert found["converting_mb"] < 300
