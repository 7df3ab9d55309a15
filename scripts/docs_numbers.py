"""Write measured numbers into the documents: between ``<!-- numbers:NAME -->`` and ``<!-- /numbers -->``.

The numbers come from ``bench/results/NAME.json``; what a command printed (NAME ends in ``-output``) from ``NAME.txt``.
A block whose file does not exist says that nothing was measured yet. No number in a document is typed by hand. Knows
nothing of how a result was measured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- numbers:([a-z-]+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)
MODELS = ("base", "tuned", "int8")
METRICS = ("bleu4", "chrf", "coverage", "invention")

ENGLISH = {
    "missing": "Not measured yet.",
    "head": "held-out products | base | fine-tuned | fine-tuned, int8",
    "bleu4": "BLEU-4",
    "chrf": "chrF",
    "coverage": "attributes mentioned",
    "invention": "attributes invented",
    "items_per_s": "items/s",
    "size_bytes": "weights",
    "interval": "Brackets: 95 % bootstrap interval. Fine-tuned against base, paired: p {p_bleu4} (BLEU-4), "
    "p {p_coverage} (attributes mentioned).",
    "data": "{rows_in} reviews in, {rows_kept} kept; dropped: {dropped}.",
    "train": "Trained {trainable_share} of the parameters at {train_tokens_per_s} tokens/s.",
    "serve": "int8 has {size_ratio} of the fp32 size. Batched, the fine-tuned model gives {speedup}× the items/s of "
    "`transformers` called one prompt at a time on the same weights.",
    "cost": "{minutes} min in all ({seconds}), peak memory {peak_rss}.",
    "machine": "Measured on {cpu}, {num_cores} cores; {versions}.",
}
CHINESE = {
    "missing": "尚未测量。",
    "head": "留出商品 | 基座模型 | 微调后 | 微调 + int8",
    "bleu4": "BLEU-4",
    "chrf": "chrF",
    "coverage": "属性覆盖率",
    "invention": "属性编造率",
    "items_per_s": "条/秒",
    "size_bytes": "权重体积",
    "interval": "括号内为 95% 自助法置信区间。微调后与基座的配对检验：BLEU-4 的 p {p_bleu4}，"
    "属性覆盖率的 p {p_coverage}。",
    "data": "输入 {rows_in} 条评论，保留 {rows_kept} 条；剔除：{dropped}。",
    "train": "只训练了 {trainable_share} 的参数，速度 {train_tokens_per_s} token/秒。",
    "serve": "int8 体积是 fp32 的 {size_ratio}。同一份微调权重，批量生成的每秒条数是 `transformers` "
    "逐条调用的 {speedup} 倍。",
    "cost": "全程 {minutes} 分钟（{seconds}），内存峰值 {peak_rss}。",
    "machine": "测量环境：{cpu}，{num_cores} 核；{versions}。",
}


def percent(value: float) -> str:
    """0.2345 as ``23.4 %``; small shares keep two digits."""
    return f"{value * 100:.1f} %" if abs(value) >= 0.1 or value == 0 else f"{value * 100:.2f} %"


def size(size_bytes: float) -> str:
    """Bytes as MB or GB."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def p_value(value: float) -> str:
    """``= 0.032``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def score(metric: str, entry: Mapping[str, float]) -> str:
    """A value with its interval: BLEU and chrF on their 0–100 scale, shares in per cent."""
    if metric in ("bleu4", "chrf"):
        return f"{entry['value']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]"
    low, high = entry["low"] * 100, entry["high"] * 100
    return f"{entry['value'] * 100:.1f} % [{low:.1f}, {high:.1f}]"


def quickstart(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """The block of the main job: a table of the three models, then data, training, serving, cost and machine."""
    summary = result["summary"]
    rows = [(words[m], *(score(m, summary[model][m]) for model in MODELS)) for m in METRICS]
    rows.append((words["items_per_s"], *(f"{summary[model]['items_per_s']:.1f}" for model in MODELS)))
    rows.append((words["size_bytes"], *(size(summary[model]["size_bytes"]) for model in MODELS)))
    seconds: dict[str, float] = summary["seconds"]
    values = {
        "p_bleu4": p_value(summary["p_bleu4"]),
        "p_coverage": p_value(summary["p_coverage"]),
        "rows_in": f"{summary['rows_in']:,}",
        "rows_kept": f"{summary['rows_kept']:,}",
        "dropped": ", ".join(f"{reason} {count:,}" for reason, count in summary["dropped"].items()),
        "trainable_share": percent(summary["trainable_share"]),
        "train_tokens_per_s": f"{summary['train_tokens_per_s']:,.0f}",
        "size_ratio": percent(summary["size_ratio"]),
        "speedup": f"{summary['speedup_vs_transformers']:.1f}",
        "minutes": f"{sum(seconds.values()) / 60:.1f}",
        "seconds": ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items()),
        "peak_rss": size(summary["peak_rss_bytes"]),
        "cpu": result["machine"]["cpu"],
        "num_cores": result["machine"]["num_cores"],
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }
    table = [f"| {words['head']} |", "|---|---:|---:|---:|", *("| " + " | ".join(row) + " |" for row in rows)]
    notes = [f"- {words[key].format(**values)}" for key in ("interval", "data", "train", "serve", "cost", "machine")]
    return "\n".join([*table, "", *notes])


RENDERERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], str]] = {"quickstart": quickstart}


def block(name: str, words: Mapping[str, str], results: Path = RESULTS) -> str:
    """The text of one block."""
    is_output = name.endswith("-output")
    path = results / (f"{name}.txt" if is_output else f"{name}.json")
    if not path.is_file():
        return words["missing"]
    if is_output:
        return f"```text\n{path.read_text(encoding='utf-8').rstrip()}\n```"
    return RENDERERS[name](json.loads(path.read_text(encoding="utf-8")), words)


def fill(text: str, words: Mapping[str, str], results: Path = RESULTS) -> str:
    """A document with every block written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], words, results)}\n{match[3]}", text)


def documents() -> list[Path]:
    """Every document that may hold a block."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def language(path: Path) -> Mapping[str, str]:
    """Chinese for ``*.zh-CN.md`` and ``zh/``, English for all else."""
    return CHINESE if ".zh" in path.name or "zh" in path.parts else ENGLISH


def main() -> int:
    """Rewrite the documents; says which changed."""
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = fill(old, language(path))
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: numbers written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
