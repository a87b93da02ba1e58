"""Write the tables of README.md and README.zh-CN.md from records, between their markers.

    awqbench report && python benchmarks/update_readme.py --reports reports

`--reports` first copies the notebooks' answers into data/records/answers.json and the
overflow figure into docs/. Without it the tables are written from the records as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
ANSWERS = ROOT / "data" / "records" / "answers.json"
SPEED = ROOT / "data" / "records" / "search_speed.jsonl"
PEERS = ROOT / "data" / "records" / "peer_load.jsonl"
GEMM = ROOT / "data" / "records" / "gemm.jsonl"
# What the tables say around the records' own words, which stay as they are.
WORDS = {
    "en": {
        "notebooks": "| notebook | question | answer at the defaults |",
        "layouts": "| layout | whose | written | logits against its own tool |",
        "yes": "yes",
        "no": "no",
        "at most": "{tool}: at most {largest:.2g} (std {std:.1f})",
        "equal": "{tool}: equal",
        "speed": "Search from statistics against AutoAWQ's formulas, which run the modules again "
        "for every candidate: {shape}, {tokens:,} tokens, {setting}, both in one run "
        "(`benchmarks/search_speed.py`).",
        "times": "times faster",
        "machine": "{date}, {cpu}, {cores} cores, {read:.0f} GB/s read from memory in the same "
        "run.",
        "cpu": "| weight, 4 bits, groups of 128 | tokens | share of the ceiling | against torch's "
        "int4 | against bf16, unquantized | error |",
        "reading": "{share:.0%} of reading memory",
        "products": "{share:.0%} of torch's best {dtype} products",
        "activations": "{shape}, {activations} activations",
    },
    "zh": {
        "notebooks": "| 笔记本 | 问题 | 默认参数下的答案（运行时的原文） |",
        "layouts": "| 布局 | 来源 | 可写出 | 与其原生工具的 logits 之差 |",
        "yes": "是",
        "no": "否",
        "at most": "{tool}：最大 {largest:.2g}（标准差 {std:.1f}）",
        "equal": "{tool}：完全相同",
        "speed": "用统计量搜索，对比 AutoAWQ 的公式（后者对每个候选值都要重新运行模块）：{shape}，"
        "{tokens:,} 个 token，{setting}，两者在同一次运行中测得（`benchmarks/search_speed.py`）。",
        "times": "加速倍数",
        "machine": "{date}，{cpu}，{cores} 核，同一次运行中内存读取带宽 {read:.0f} GB/s。",
        "cpu": "| 权重，4 位，每组 128 | token 数 | 占上限的比例 | 对比 torch 的 int4 | "
        "对比未量化的 bf16 | 误差 |",
        "reading": "内存读取速率的 {share:.0%}",
        "products": "torch 最佳 {dtype} 乘法速率的 {share:.0%}",
        "activations": "{shape}，{activations} 激活",
        # By the English words: a question that changes is shown in English until translated.
        "per setting": "每组设置",
        "one setting, collection included": "一组设置，含收集统计量",
        "12 settings, collection included": "12 组设置，含收集统计量",
        "What does 4-bit quantization do to a model, layer by layer, and does the result still "
        "run and write on this machine?": "4 位量化对模型逐层做了什么？结果在这台机器上还能运行、"
        "还能写出文本吗？",
        "GPTQ v1 (zero points minus one); vLLM where it is symmetric": "GPTQ v1（零点减一）；"
        "对称时可用于 vLLM",
        "GPTQModel's v2": "GPTQModel 的 v2",
        "ChatGLM's QuantizedLinear": "ChatGLM 的 QuantizedLinear",
        "Does quantizing through float16 overflow or underflow, and where?": "经过 float16 "
        "的量化会上溢或下溢吗？发生在哪里？",
        "How many bits and which group size, and does AWQ, clip or GPTQ help?": "该用几位、多大的"
        "分组？AWQ、截断和 GPTQ 有帮助吗？",
        "Over how many GPUs does a quantized model split, and what has to change before it is "
        "quantized?": "量化后的模型能切分到几块 GPU 上？量化之前必须改什么？",
        "Which module goes on which GPU, and how long a context is left room for?": "哪个模块放在"
        "哪块 GPU 上？还能容纳多长的上下文？",
        "What lies in a quantized folder, and does another layout hold the same numbers?": "量化"
        "后的文件夹里有什么？换一种布局，数值是否相同？",
        "What would other bits, groups, memory or machines cost, before "
        "anything is quantized?": "在量化之前：换一种位数、分组、内存或机器，代价是多少？",
        "Are the CUDA kernels for packed weights right, and how near can they come to the limit "
        "of memory?": "打包权重的 CUDA 内核正确吗？它们能多接近内存带宽的极限？",
        "How large a model can this machine quantize, how fast, and what does a crash cost?": "这台"
        "机器能量化多大的模型？有多快？一次崩溃的代价是什么？",
        "Is a quantized model worth running on the ARM machine or on the x86 "
        "one, and which of the figures were measured?": "量化后的模型该在 ARM 机器上"
        "运行还是在 x86 机器上运行？哪些数字是实测的？",
    },
}


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


def notebooks_table(words: Mapping[str, str]) -> str:
    """Return README's table of notebooks."""
    rows = [
        f"| [{row['notebook']}](notebooks/{row['notebook']}.ipynb) "
        f"| {words.get(row['question'], row['question'])} | {row['answer']} |"
        for row in json.loads(ANSWERS.read_text())
    ]
    return "\n".join([words["notebooks"], "|---|---|---|", *rows])


def measured_table(words: Mapping[str, str]) -> str:
    """Return README's table of measured ratios, from the newest record."""
    record = json.loads(SPEED.read_text().splitlines()[-1])
    ratios, machine = record["ratios"], record["machine"]
    rows = "\n".join(
        f"| {words.get(name, name)} | {value:.0f} x |" for name, value in ratios.items()
    )
    what = words["speed"].format_map(record)
    where = words["machine"].format(
        date=record["finished"][:10],
        cpu=machine["cpu"],
        cores=machine["cores_usable"],
        read=record["read_bandwidth_gb_s"],
    )
    return f"{what}\n\n| | {words['times']} |\n|---|---|\n{rows}\n\n{where}"


def cpu_table(words: Mapping[str, str]) -> str:
    """Return README's table of native products against torch's, from the newest record."""
    records = [json.loads(line) for line in GEMM.read_text().splitlines()]
    record = [r for r in records if r["settings"]["bits"] == 4 and not r["peers"] and _has_own(r)][
        -1
    ]
    lines = [words["cpu"], "|---|---|---|---|---|---|"]
    for activations in ("int16", "int8"):
        for row in record["rows"]:
            if row["path"] != f"native {activations}":
                continue
            is_few = row["tokens"] <= 4
            share = row["roofline_fraction"]  # against the rate of the path's own arithmetic
            dtype = {"int16": "bfloat16", "int8": "int8"}[activations]
            what = words["activations"].format(shape=row["shape"], activations=activations)
            lines.append(
                f"| {what} | {row['tokens']} "
                f"| {words['reading' if is_few else 'products'].format(share=share, dtype=dtype)} "
                f"| {row['vs torch int4pack']:.2f} x | {row['vs torch dense bfloat16']:.2f} x "
                f"| {row['rel_error']:.1e} |"
            )
    where = words["machine"].format(
        date=record["finished"][:10],
        cpu=record["machine"]["cpu"],
        cores=record["machine"]["cores_usable"],
        read=record["ceilings"]["read_gb_s"],
    )
    return "\n".join([*lines, "", where])


def _has_own(record: Mapping) -> bool:
    """Tell whether a record has the products of the table, against torch's."""
    rows = [row for row in record["rows"] if row["path"] == "native int16"]
    return bool(rows) and "vs torch int4pack" in rows[0] and rows[0]["shape"] == "4096x4096"


def layouts_table(words: Mapping[str, str]) -> str:
    """Return README's table of layouts, with the distance to the tools that they belong to."""
    from awqbench.formats.layouts.table import LAYOUTS

    rows = [json.loads(line) for line in PEERS.read_text().splitlines()]
    lines = [words["layouts"], "|---|---|---|---|"]
    for layout in LAYOUTS.values():
        cases = [row for row in rows if row["case"].rsplit("-g", 1)[0] == layout.name]
        first = {row["case"]: row for row in reversed(cases)}  # the tool's exact path comes first
        found = ""
        if first:
            tool = next(iter(first.values()))["path"].split(" in ")[0].split(" ")[0]
            largest = max(row["largest_decoded"] for row in first.values())
            std = next(iter(first.values()))["logits_std"]
            form = words["at most" if largest else "equal"]
            found = form.format(tool=tool, largest=largest, std=std)
        what = words.get(layout.what, layout.what)
        written = words["yes" if layout.is_written else "no"]
        lines.append(f"| `{layout.name}` | {what} | {written} | {found} |")
    return "\n".join(lines)


def filled(text: str, language: str = "en") -> str:
    """Return README's text with its blocks written anew, in one of the languages of WORDS."""
    words = WORDS[language]
    blocks = {
        "notebooks": notebooks_table(words),
        "layouts": layouts_table(words),
        "measured": measured_table(words),
        "cpu": cpu_table(words),
    }
    for name, block in blocks.items():
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        content = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, c=content: c, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(
                f"{READMES[language].name} has {count} blocks named {name}, expected 1"
            )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=Path, help="folder of a report at the defaults")
    args = parser.parse_args()
    if args.reports:
        copy_answers(args.reports)
    for language, path in READMES.items():
        path.write_text(filled(path.read_text(), language))
