"""Write README's tables from records, between their markers.

    awqbench report && python benchmarks/update_readme.py --reports reports

`--reports` first copies the notebooks' answers into data/records/answers.json and the
overflow figure into docs/. Without it the tables are written from the records as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ANSWERS = ROOT / "data" / "records" / "answers.json"
SPEED = ROOT / "data" / "records" / "search_speed.jsonl"
PEERS = ROOT / "data" / "records" / "peer_load.jsonl"


def copy_answers(reports: Path) -> None:
    """Keep each notebook's question, answer and time, and the figure of the first screen."""
    rows = []
    for folder in sorted(reports.glob("[0-9]*")):
        run = json.loads((folder / "run.json").read_text())
        results = json.loads((folder / "results.json").read_text())
        notebook = json.loads((ROOT / "notebooks" / f"{folder.name}.ipynb").read_text())
        question = "".join(notebook["cells"][0]["source"]).split("\n\n")[1]
        rows.append(
            {
                "notebook": folder.name,
                "question": question.split("?")[0] + "?",
                "answer": results["answer"],
                "elapsed_s": round(run["elapsed_s"]),
            }
        )
    ANSWERS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    shutil.copyfile(
        reports / "01_overflow" / "figures" / "headline.png", ROOT / "docs/overflow.png"
    )


def notebooks_table() -> str:
    """Return README's table of notebooks."""
    head = "| notebook | question | answer on the embedded model |\n|---|---|---|"
    rows = [
        f"| [{row['notebook']}](notebooks/{row['notebook']}.ipynb) | {row['question']} "
        f"| {row['answer']} |"
        for row in json.loads(ANSWERS.read_text())
    ]
    return "\n".join([head, *rows])


def measured_table() -> str:
    """Return README's table of measured ratios, from the newest record."""
    record = json.loads(SPEED.read_text().splitlines()[-1])
    ratios, machine = record["ratios"], record["machine"]
    rows = "\n".join(f"| {name} | {value:.0f} x |" for name, value in ratios.items())
    return (
        f"Search from statistics against AutoAWQ's formulas, which run the modules again for every "
        f"candidate: {record['shape']}, {record['tokens']:,} tokens, {record['setting']}, both in "
        f"one run (`benchmarks/search_speed.py`).\n\n| | times faster |\n|---|---|\n{rows}\n\n"
        f"{record['finished'][:10]}, {machine['cpu']}, {machine['cores_usable']} cores, "
        f"{record['read_bandwidth_gb_s']:.0f} GB/s read from memory in the same run."
    )


def layouts_table() -> str:
    """Return README's table of layouts, with the distance to the tools that they belong to."""
    from awqbench.formats.layouts import LAYOUTS

    rows = [json.loads(line) for line in PEERS.read_text().splitlines()]
    lines = ["| layout | whose | written | logits against its own tool |", "|---|---|---|---|"]
    for layout in LAYOUTS.values():
        cases = [row for row in rows if row["case"].rsplit("-g", 1)[0] == layout.name]
        first = {row["case"]: row for row in reversed(cases)}  # the tool's exact path comes first
        found = ""
        if first:
            tool = next(iter(first.values()))["path"].split(" in ")[0].split(" ")[0]
            largest = max(row["largest_decoded"] for row in first.values())
            std = next(iter(first.values()))["logits_std"]
            found = (
                f"{tool}: at most {largest:.2g} (std {std:.1f})" if largest else f"{tool}: equal"
            )
        written = "yes" if layout.is_written else "no"
        lines.append(f"| `{layout.name}` | {layout.what} | {written} | {found} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return README's text with its blocks written anew."""
    blocks = {
        "notebooks": notebooks_table(),
        "layouts": layouts_table(),
        "measured": measured_table(),
    }
    for name, block in blocks.items():
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        content = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, c=content: c, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks named {name}, expected 1")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=Path, help="folder of a report at the defaults")
    args = parser.parse_args()
    if args.reports:
        copy_answers(args.reports)
    README.write_text(filled(README.read_text()))
