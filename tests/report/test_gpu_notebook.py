"""07_gpu_gemm where a GPU was at hand: its cells of measured times, on a made-up record."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from gpu_cases import gpu_record, gpu_rows

from awqbench.report.notebooks import read_notebook

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_gpu_gemm.ipynb"


def run_measured(records_dir):
    """Run the imports, and the section of measured times."""
    cells = read_notebook(NOTEBOOK)["cells"]
    texts = [cell["source"] for cell in cells]
    first = next(i for i, text in enumerate(texts) if text.startswith("## Measured"))
    last = next(i for i, text in enumerate(texts) if text.startswith("## What would change"))
    imports = [i for i, text in enumerate(texts) if text.startswith(("import ", "from "))]
    shown = []
    names = {"records_dir": str(records_dir), "figures": {}, "display": shown.append}
    for at in (*imports, *range(first, last)):
        if cells[at]["cell_type"] == "code":
            exec(compile(texts[at], f"cell {at}", "exec"), names)
    plt.close("all")
    return names, shown


def test_without_a_record_it_says_so(tmp_path, capsys):
    names, shown = run_measured(tmp_path)
    assert "Not run on a GPU." in capsys.readouterr().out
    assert not shown and not names["figures"]


def test_a_record_is_shown_with_device_and_date(tmp_path, capsys):
    (tmp_path / "gpu_gemm.jsonl").write_text(gpu_record(gpu_rows()))
    names, shown = run_measured(tmp_path)
    out = capsys.readouterr().out
    assert "Measured on made-up GPU, 2030-01-02, commit 0123456789" in out and "Not run" not in out
    assert "copy 4000 GB/s" in out and len(shown[0]) == 12
    assert names["figures"]["measured"].figure.get_suptitle().startswith("Measured: 2.00 times")


def test_a_wrong_kernel_fails_the_notebook(tmp_path):
    (tmp_path / "gpu_gemm.jsonl").write_text(gpu_record(gpu_rows(is_wrong=True)))
    with pytest.raises(AssertionError):
        run_measured(tmp_path)
