"""Write measured numbers into the documents: between ``<!-- numbers:NAME -->`` and ``<!-- /numbers -->``.

The numbers come from ``bench/results/NAME.json``; what a command printed (NAME ends in ``-output``) from ``NAME.txt``.
A block whose file does not exist says that nothing was measured yet. No number in a document is typed by hand. Knows
nothing of how a result was measured.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
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
    "models_head": "on the same weights, times as fast as transformers | fp32 | bf16",
    "llama_forward": "135M decoder, 512 tokens: forward",
    "llama_step": "forward + backward",
    "bert_forward": "BERT-base, 16 × 128 tokens: forward",
    "bert_step": "forward + backward",
    "bart_forward": "BART-base, 4 × (256 → 64) tokens: forward",
    "bart_step": "forward + backward",
    "vit_forward": "ViT-S, 8 images: forward",
    "vit_step": "forward + backward",
    "decode1": "135M decoder, one new token of one row",
    "decode1_int8": "the same, ours in int8 against theirs in bf16",
    "experts_head": "layer of experts, times as fast as transformers' loop | fp32 | bf16",
    "moe_forward": "{shape}, 512 tokens: forward",
    "moe_step": "forward + backward",
    "moe_decode1": "one token",
    "moe_decode8": "eight tokens",
    "32of4": "32 experts, 4 used",
    "64of8": "64 experts, 8 used",
    "linear_head": "ms, forward | 1,024 tokens | 4,096 | 16,384 | 16,384 / 1,024",
    "mamba2": "Mamba-2",
    "deltanet": "Gated DeltaNet",
    "attention": "softmax attention (danlu)",
    "sdpa": "softmax attention (torch)",
    "train_head": "{case} | tokens/s | times | held-out loss | peak memory",
    "lora": "LoRA on SmolLM2-135M, 8 reviews a step",
    "pretrain_5m": "pre-training, 5M Llama, 256 tokens a row",
    "pretrain_15m": "pre-training, 15M Llama, 512 tokens a row",
    "hf_default": "HF Trainer, as it comes (fp32)",
    "hf_bf16": "HF Trainer, bf16",
    "hf_bf16_flat": "HF Trainer, bf16, padding-free",
    "hf_bf16_grouped": "HF Trainer, bf16, grouped by length",
    "hf_bf16_compiled": "HF Trainer, bf16, compiled",
    "trl_default": "TRL, as it comes",
    "trl_flat": "TRL, padding-free",
    "litgpt": "litgpt, as it comes",
    "litgpt_whole_batch": "litgpt, whole batch at once",
    "ours": "**danlu**",
    "ours_fp32": "danlu, fp32",
    "ours_checkpointing": "danlu, activations computed again",
    "void": " (worse than the fp32 reference: not the same work)",
    "pretrain_head": "from scratch on two cores",
    "en": "English",
    "zh": "Chinese",
    "parameters": "weights",
    "train_text": "training text",
    "tokens_read": "tokens read",
    "held_out_text": "held-out text",
    "pretrained": "**bits per byte, our model**",
    "xz": "xz",
    "kneser_ney": "Kneser-Ney, {order} bytes",
    "minutes": "minutes in all (of them training)",
    "en_sample": "The English model goes on from *{prompt}*: {text}",
    "zh_sample": "The Chinese model goes on from *{prompt}*: {text}",
    "sentiment_head": "test rows | TF-IDF and logistic regression | danlu",
    "sentiment_zh": "Chinese, two labels: accuracy",
    "sentiment_en": "English, three labels: macro-F1",
    "energy_head": "codecarbon counts | danlu, Wh | its processor | its memory | its sum | danlu / codecarbon",
    "energy_process": "this process",
    "energy_machine": "the whole machine",
    "energy_note": "Ours is {ours_method}, with {ours_watts_per_busy_core:g} W a busy core; codecarbon came to "
    "{codecarbon_cpu_watts_per_busy_core:.1f} W a busy core and {codecarbon_ram_watts:g} W of memory for as long as "
    "the job lasts. Load average before: {load:.1f}.",
    "tokenizer_head": "characters a token, ours / Qwen3's (151,669 ids) | English | Chinese",
    "same": "{size} ids, documents kept aside of the same sources",
    "other": "{size} ids, sources never trained on",
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
    "models_head": "同样的权重，速度是 transformers 的几倍 | fp32 | bf16",
    "llama_forward": "1.35 亿参数解码器，512 个 token：前向",
    "llama_step": "前向 + 反向",
    "bert_forward": "BERT-base，16 × 128 个 token：前向",
    "bert_step": "前向 + 反向",
    "bart_forward": "BART-base，4 ×（256 → 64）个 token：前向",
    "bart_step": "前向 + 反向",
    "vit_forward": "ViT-S，8 张图片：前向",
    "vit_step": "前向 + 反向",
    "decode1": "1.35 亿参数解码器，单行生成一个 token",
    "decode1_int8": "同上，我们用 int8，对方用 bf16",
    "experts_head": "混合专家层，速度是 transformers 循环实现的几倍 | fp32 | bf16",
    "moe_forward": "{shape}，512 个 token：前向",
    "moe_step": "前向 + 反向",
    "moe_decode1": "一个 token",
    "moe_decode8": "八个 token",
    "32of4": "32 个专家，每次用 4 个",
    "64of8": "64 个专家，每次用 8 个",
    "linear_head": "前向耗时（毫秒）| 1,024 个 token | 4,096 | 16,384 | 16,384 / 1,024",
    "mamba2": "Mamba-2",
    "deltanet": "Gated DeltaNet",
    "attention": "softmax 注意力（danlu）",
    "sdpa": "softmax 注意力（torch）",
    "train_head": "{case} | token/秒 | 倍数 | 留出损失 | 峰值内存",
    "lora": "LoRA，SmolLM2-135M，每步 8 条评论",
    "pretrain_5m": "预训练，5M Llama，每行 256 token",
    "pretrain_15m": "预训练，15M Llama，每行 512 token",
    "hf_default": "HF Trainer，默认（fp32）",
    "hf_bf16": "HF Trainer，bf16",
    "hf_bf16_flat": "HF Trainer，bf16，无填充",
    "hf_bf16_grouped": "HF Trainer，bf16，按长度分组",
    "hf_bf16_compiled": "HF Trainer，bf16，编译",
    "trl_default": "TRL，默认",
    "trl_flat": "TRL，无填充",
    "litgpt": "litgpt，默认",
    "litgpt_whole_batch": "litgpt，整批一次",
    "ours": "**danlu**",
    "ours_fp32": "danlu，fp32",
    "ours_checkpointing": "danlu，重算激活",
    "pretrain_head": "两核上从零训练",
    "en": "英文",
    "zh": "中文",
    "parameters": "参数",
    "train_text": "训练文本",
    "tokens_read": "读过的 token",
    "held_out_text": "留出文本",
    "pretrained": "**每字节比特数，我们的模型**",
    "xz": "xz",
    "kneser_ney": "Kneser-Ney，{order} 字节",
    "minutes": "全程分钟数（其中训练）",
    "en_sample": "英文模型续写 *{prompt}*：{text}",
    "zh_sample": "中文模型续写 *{prompt}*：{text}",
    "void": "（差于 fp32 参照，不算同样的工作）",
    "sentiment_head": "测试集 | TF-IDF 加逻辑回归 | danlu",
    "sentiment_zh": "中文，两类：准确率",
    "sentiment_en": "英文，三类：宏平均 F1",
    "energy_head": "codecarbon 的口径 | danlu，Wh | 其处理器 | 其内存 | 其合计 | danlu / codecarbon",
    "energy_process": "本进程",
    "energy_machine": "整机",
    "energy_note": "我们的数（{ours_method}）按每个忙碌核心 {ours_watts_per_busy_core:g} W；codecarbon 每个忙碌核心合 "
    "{codecarbon_cpu_watts_per_busy_core:.1f} W，另加整个任务期间内存的 {codecarbon_ram_watts:g} W。"
    "测前平均负载 {load:.1f}。",
    "tokenizer_head": "每个 token 的字符数，我们 / Qwen3（151,669 个词元）| 英文 | 中文",
    "same": "{size} 词表，同源留出文档",
    "other": "{size} 词表，从未训练过的来源",
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


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers."""
    line = "|---|" + "---:|" * head.count("|")
    return [f"| {head} |", line, *("| " + " | ".join(row) + " |" for row in rows)]


def machine(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Where it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return words["machine"].format(**result["machine"], versions=versions)


def models(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """How fast the core is beside transformers."""
    runs = result["runs"]

    def times(name: str) -> str:
        return f"{runs[name]['ratio']:.2f}" if name in runs else "–"

    cases = dict.fromkeys(name.removesuffix("_fp32").removesuffix("_bf16") for name in runs)
    rows = [(words[case], times(f"{case}_fp32"), times(case if case in runs else f"{case}_bf16")) for case in cases]
    return "\n".join([*table(words["models_head"], rows), "", machine(result, words)])


def experts(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """How fast layers of experts are."""
    runs = result["runs"]
    rows = [
        (words[kind].format(shape=words[shape]), *(f"{runs[f'{kind}_{shape}_{t}']['ratio']:.2f}" for t in TYPES))
        for shape in ("32of4", "64of8")
        for kind in ("moe_forward", "moe_step", "moe_decode1", "moe_decode8")
    ]
    return "\n".join([*table(words["experts_head"], rows), "", machine(result, words)])


def linear_attention(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """How recurrent layers grow with the length of a row."""
    rows: list[tuple[str, ...]] = []
    for name, times in result["runs"]["forward_ms"].items():
        found = [statistics.median(times[length]) for length in ("1024", "4096", "16384")]
        rows.append((words[name], *(f"{ms:,.0f}" for ms in found), f"{found[-1] / found[0]:.0f}×"))
    return "\n".join([*table(words["linear_head"], rows), "", machine(result, words)])


def tokenizer(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """How densely our own vocabularies write English and Chinese."""
    ratios = result["ratios"]
    rows = [
        (
            words[where].format(size=size),
            *(f"{ratios[f'{language}_{size}_{where}_sources']:.2f}" for language in ("en", "zh")),
        )
        for size in ("16k", "32k")
        for where in ("same", "other")
    ]
    return "\n".join([*table(words["tokenizer_head"], rows), "", machine(result, words)])


def train(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """How fast training is beside other trainers, on the same rows in the same order."""
    parts: list[str] = []
    for case in ("lora", "pretrain_5m", "pretrain_15m"):
        systems = result["runs"].get(case, {}).get("systems", {})
        ours = systems.get(f"{case}_ours", {}).get("median_tokens_per_s", 0.0)
        rows = [
            (
                words[name.removeprefix(f"{case}_")] + (words["void"] if fact["is_void"] else ""),
                f"{fact['median_tokens_per_s']:,.0f}",
                f"{ours / fact['median_tokens_per_s']:.2f}×",
                f"{fact['held_out']['loss']:.3f}",
                f"{max(fact['max_rss_bytes']) / 1e9:.2f} GB",
            )
            for name, fact in systems.items()
        ]
        if rows:
            parts += [*table(words["train_head"].format(case=words[case]), rows), ""]
    peers = ", ".join(f"{name} {version}" for name, version in result["runs"]["peers"].items())
    return "\n".join([*parts, f"{machine(result, words)} {peers}."])


def pretrain_recipes(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """What the pre-training recipes make, beside a compressor and n-grams."""
    runs: Mapping[str, Any] = result["runs"]
    scores = [run["summary"]["scores"] for run in runs.values()]
    rows = [
        (words["parameters"], *(f"{one['parameters'] / 1e6:.1f} M" for one in scores)),
        (words["train_text"], *(size(one["train_bytes"]) for one in scores)),
        (words["tokens_read"], *(f"{run['tokens_read'] / 1e6:.1f} M" for run in runs.values())),
        (words["held_out_text"], *(f"{one['held_out_bytes'] / 1e3:,.0f} kB" for one in scores)),
        (words["pretrained"], *(f"**{one['model']:.3f}**" for one in scores)),
        (words["xz"], *(f"{one['xz']:.3f}" for one in scores)),
        *(
            (words["kneser_ney"].format(order=order), *(f"{one['kneser_ney_of_order'][order]:.3f}" for one in scores))
            for order in scores[0]["kneser_ney_of_order"]
        ),
        (words["minutes"], *(minutes(run) for run in runs.values())),
    ]
    samples = [
        f"- {words[f'{language}_sample'].format(**{key: one_line(text) for key, text in sample.items()})}"
        for language, run in runs.items()
        for sample in run["samples"]
    ]
    head = " | ".join([words["pretrain_head"], *(words[language] for language in runs)])
    return "\n".join([*table(head, rows), "", *samples, "", machine(result, words)])


def sentiment(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """What the sentiment recipes reach on their test rows; of several seeds the mean and the range."""
    rows: list[tuple[str, ...]] = []
    for language, run in result["runs"].items():
        judge = run["judge"]
        ours = [100.0 * one["test"][judge] for one in run["ours"].values()]
        told = f"**{statistics.mean(ours):.1f}**" + (f" ({min(ours):.1f}–{max(ours):.1f})" if len(ours) > 1 else "")
        rows.append((words[f"sentiment_{language}"], f"{100.0 * run['tfidf']['test'][judge]:.1f}", told))
    return "\n".join([*table(words["sentiment_head"], rows), "", machine(result, words)])


def energy(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Our energy figure beside codecarbon's, and what both count a busy core with."""
    rows = [
        (
            words[f"energy_{mode}"],
            *(f"{run[key]:.3f}" for key in ("ours_wh", "codecarbon_cpu_wh", "codecarbon_ram_wh", "codecarbon_wh")),
            f"{run['ratio']:.2f}×",
        )
        for mode, run in result["runs"].items()
        if mode in ("process", "machine")
    ]
    note = words["energy_note"].format(**result["runs"]["process"], load=result["machine"]["load_before"])
    return "\n".join([*table(words["energy_head"], rows), "", f"{note} {machine(result, words)}"])


def minutes(run: Mapping[str, Any]) -> str:
    """Of a whole recipe, and of its training."""
    return f"{run['wall_s'] / 60:.1f} ({run['summary']['seconds']['base'] / 60:.1f})"


def one_line(text: str) -> str:
    """Text of several lines as one, with nothing that Markdown would read."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " / ".join(line.strip() for line in text.splitlines() if line.strip()))


TYPES = ("fp32", "bf16")
RENDERERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], str]] = {
    "quickstart": quickstart, "models": models, "experts": experts, "linear-attention": linear_attention,
    "tokenizer": tokenizer, "train": train, "energy": energy, "pretrain-recipes": pretrain_recipes,
    "sentiment": sentiment,
}  # fmt: skip


def block(name: str, words: Mapping[str, str], results: Path = RESULTS) -> str:
    """The text of one block."""
    is_output = name.endswith("-output")
    path = results / (f"{name}.txt" if is_output else f"{name.replace('-', '_')}.json")
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
