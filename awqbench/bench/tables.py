"""Tables of measurements as text, for terminals."""

from __future__ import annotations

from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from awqbench.bench.gemm_figures import VERSUS

if TYPE_CHECKING:
    import pandas as pd

# Fewer caches than this, and copies may be read from the cache instead of from memory.
_FEWEST_CACHES = 2


def ceilings_text(ceilings: dict[str, Any]) -> str:
    """Return `Ceilings`, as a dict, on one line."""
    int8 = ceilings["int8_gop_per_s"]
    parts = [
        f"{ceilings['threads']} thread{'s' if ceilings['threads'] > 1 else ''}",
        f"reads {ceilings['read_gb_s']:.1f} GB/s ({ceilings['read_1_thread_gb_s']:.1f} on one)",
        f"float32 {ceilings['float32_gflop_per_s']:.0f}",
        f"bfloat16 {ceilings['bfloat16_gflop_per_s']:.0f} GFLOP/s",
    ]
    return ", ".join(parts + ([f"int8 {int8:.0f} GOP/s"] if int8 else []))


def gemm_lines(case: pd.DataFrame) -> str:
    """Return the rows of one shape and number of tokens as text, fastest first.

    Parameters
    ----------
    case : DataFrame
        Rows of `bench_gemm`.

    Returns
    -------
    str
        A heading, a line for each path with its ratio to each peer (times faster) under a
        letter, a word on noise, and what the letters stand for.
    """
    import pandas as pd

    case = case.sort_values("median_s")
    first = case.iloc[0]
    shown = pd.DataFrame(
        {
            "path": case["path"] + case["is_peer"].map({True: " (peer)", False: ""}),
            "median ms": (case["median_s"] * 1e3).map("{:.3g}".format),
            "min ms": (case["min_s"] * 1e3).map("{:.3g}".format),
            "max/min": case["spread"].map("{:.2f}".format),
            "bound ms": (case["bound_s"] * 1e3).map("{:.3g}".format),
            "of bound": case["roofline_fraction"].map("{:.0%}".format),
            "GB/s": case["gb_s"].map("{:.1f}".format),
            "of read": case["fraction_of_read"].map("{:.0%}".format),
            "GFLOP/s": case["gflop_per_s"].map("{:.0f}".format),
            "of peak": case["fraction_of_peak"].map("{:.0%}".format),
            "error": case["rel_error"].map("{:.0e}".format),
        }
    )
    ratios = [name for name in case if name.startswith(VERSUS) and case[name].notna().any()]
    letters = dict(zip(ascii_lowercase, ratios, strict=False))
    for letter, name in letters.items():
        shown[f"x {letter}"] = case[name].map(lambda r: "-" if r != r else f"{r:.2f}")
    shown[""] = [_remark(row) for row in case.to_dict(orient="records")]
    heading = (
        f"{first['shape']} (K x N), {first['bits']} bits, group {first['group_size']}, "
        f"M = {first['tokens']}; probes of this case: {first['read_gb_s']:.1f} GB/s, "
        f"{first['peak_gflop_per_s']:.0f} GFLOP/s"
    )
    peers = ", ".join(f"{letter}: {name.removeprefix(VERSUS)}" for letter, name in letters.items())
    legend = f"\ntimes faster than {peers}" if peers else ""
    if peers:
        legend += "; a ratio over `of bound` is the most that this run's probes allow"
    return f"{heading}\n{shown.to_string(index=False)}{legend}"


def _remark(row: dict[str, Any]) -> str:
    remarks = ["WRONG RESULT"] if row["is_wrong"] else []
    if row["is_noisy"]:
        remarks.append("noisy")
    if row["rotated_caches"] < _FEWEST_CACHES:
        remarks.append(f"copies fill {row['rotated_caches']:.1f} caches only")
    return ", ".join(remarks)


def model_lines(table: pd.DataFrame) -> str:
    """Return the rows of `bench_model` as text, a line for each backend."""
    import pandas as pd

    first = table.iloc[0]
    shown = pd.DataFrame(
        {
            "backend": table["backend"],
            "dtype": table["dtype"],
            "load s": table["load_s"].map("{:.1f}".format),
            "peak GB": (table["peak_bytes"] / 1e9).map("{:.2f}".format),
            "prefill tok/s": table["prefill_tok_per_s"].map("{:.1f}".format),
            "tok/s": table["tok_per_s"].map("{:.2f}".format),
            "best": table["best_tok_per_s"].map("{:.2f}".format),
            "max/min": table["spread"].map("{:.2f}".format),
            "GB a token": (table["bytes_per_token"] / 1e9).map("{:.3f}".format),
            "GB/s": table["gb_s"].map("{:.1f}".format),
            "of read": table["fraction_of_read"].map("{:.0%}".format),
        }
    )
    for column in table.columns[table.columns.str.startswith(VERSUS)]:
        shown[column] = table[column].map("{:.2f}".format)
    shown[""] = table["is_noisy"].map({True: "noisy", False: ""})
    turns = "" if first["is_interleaved"] else "; one after the other, for want of memory"
    heading = (
        f"{first['model']}, {first['folder_bytes'] / 1e9:.2f} GB: {first['prompt_tokens']} tokens "
        f"in, {first['new_tokens']} out{turns}; probe reads {first['read_gb_s']:.1f} GB/s"
    )
    return f"{heading}\n{shown.to_string(index=False)}"
