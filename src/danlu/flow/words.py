"""How numbers read, and the report's words in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Language = Literal["en", "zh"]

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "report": "Run report",
        "quality": "Quality",
        "quality_help": "Same held-out items for every column; under each value its 95 % bootstrap interval.",
        "metric": "metric",
        "lower": "lower is better",
        "higher": "higher is better",
        "held_out": "Held-out items",
        "difference": "Difference",
        "change": "change",
        "speedup": "Speed-up",
        "peer": "Measured beside a peer",
        "training": "Training",
        "data": "Data",
        "rows": "Rows kept",
        "rows_in": "rows in",
        "rows_kept": "rows kept",
        "dropped": "Dropped, by reason",
        "samples": "Samples",
        "samples_help": "The same prompts answered by each model.",
        "prompt": "prompt",
        "reference": "reference",
        "stages": "Time and energy",
        "stage": "stage",
        "kind": "makes",
        "artifact": "artifact",
        "time": "Time",
        "size": "size",
        "numbers": "numbers",
        "energy": "Energy",
        "total": "total",
        "measured": "measured",
        "estimated": "estimated",
        "carbon": "carbon intensity (an input)",
        "lineage": "Lineage",
        "lineage_help": "What each result was made from, back to the fetched files.",
        "again": "see above",
        "reproduce": "Reproduce",
        "reproduce_help": "Runs only what is not already there.",
        "train": "train",
        "validation": "validation",
        "loss": "loss",
        "step": "step",
        "bleu4": "BLEU-4",
        "chrf": "chrF",
        "coverage": "Attribute coverage",
        "invention": "Invention rate",
        "items_per_s": "Items per second",
        "output_tokens_per_s": "Output tokens per second",
        "size_bytes": "Model size",
    },
    "zh": {
        "report": "运行报告",
        "quality": "质量",
        "quality_help": "各列使用同一批留出样本；数值下方为 95 % 自助法区间。",
        "metric": "指标",
        "lower": "越低越好",
        "higher": "越高越好",
        "held_out": "留出样本数",
        "difference": "差异",
        "change": "变化",
        "speedup": "提速",
        "peer": "同类工具对比",
        "training": "训练",
        "data": "数据",
        "rows": "保留行数",
        "rows_in": "输入行",
        "rows_kept": "保留行",
        "dropped": "按原因丢弃",
        "samples": "样例",
        "samples_help": "各模型对同一提示的回答。",
        "prompt": "提示",
        "reference": "参考",
        "stages": "时间与能耗",
        "stage": "阶段",
        "kind": "产物类型",
        "artifact": "产物",
        "time": "用时",
        "size": "大小",
        "numbers": "数字",
        "energy": "能耗",
        "total": "合计",
        "measured": "实测",
        "estimated": "估算",
        "carbon": "电网碳强度（输入值）",
        "lineage": "血缘",
        "lineage_help": "每个结果由何而来，直到下载的文件。",
        "again": "见上",
        "reproduce": "复现",
        "reproduce_help": "已完成的部分不会重做。",
        "train": "训练",
        "validation": "验证",
        "loss": "损失",
        "step": "步",
        "bleu4": "BLEU-4",
        "chrf": "chrF",
        "coverage": "属性覆盖率",
        "invention": "虚构率",
        "items_per_s": "每秒条数",
        "output_tokens_per_s": "每秒输出词元",
        "size_bytes": "模型大小",
    },
}


def duration(seconds: float) -> str:
    """``0.4 s``, ``41 s``, ``6 min 12 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def describe_host(host: Mapping[str, Any]) -> str:
    """The machine in one line."""
    forms = {"num_cores": "{} cores", "python": "Python {}", "torch": "torch {}"}
    return ", ".join(forms.get(name, "{}").format(value) for name, value in host.items() if value)


def headline(metrics: Mapping[str, Any], most: int = 4) -> str:
    """The first few plain numbers of a stage's metrics in one line."""
    numbers = [(k, v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return " · ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in numbers[:most])


def _short(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
