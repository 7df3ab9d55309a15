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

from scripts.docs_words import CHINESE, ENGLISH

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- numbers:([a-z-]+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)
MODELS = ("base", "tuned", "int8")
METRICS = ("bleu4", "chrf", "coverage", "invention")


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


SERVED = (
    "ours_int8", "llama_cpp_q8_0", "xllamacpp_q8_0", "ours_bf16", "llama_cpp_bf16", "transformers_bf16",
    "transformers_fp32", "transformers_serve_bf16",
)  # fmt: skip
JUDGED = (
    "ours_fp32", "ours_bf16", "llama_cpp_bf16", "ours_int8", "llama_cpp_q8_0",
)  # fmt: skip

PARTS = ("products", "attention", "scheduling", "sampling", "http")
"""Where the time of a token goes."""


def serve(result: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Tokens a second of each system, every ratio, and what each precision costs in quality."""
    runs = result["runs"]
    levels = {**runs.get("transformers", {}), **runs.get("decode", {})}
    systems: dict[str, dict[str, Mapping[str, Any]]] = {}
    for case in ("transformers_serve", "transformers", "decode"):
        for level, facts in runs.get(case, {}).items():
            for name, found in facts["systems"].items():
                systems.setdefault(name, {})[level] = found
    rows = [
        (
            words[name],
            *(middle(systems[name], level, "output_throughput", "{:,.0f}") for level in ("1", "8", "32")),
            middle(systems[name], "8", "p95_ttft_ms", "{:,.0f} ms"),
        )
        for name in SERVED
        if name in systems
    ]
    lines = table(words["serve_head"], rows) if rows else []
    ratios = [(words.get(f"served_{name}", words[name]), f"{value:,.2f}") for name, value in result["ratios"].items()]
    lines += ["", *table(words["serve_ratio_head"], ratios)]
    parts = [
        (level, *(f"{facts['us_per_token'][part]:,.0f}" for part in PARTS), f"{facts['duration_us_per_token']:,.0f}")
        for level, facts in runs.get("split", {}).items()
    ]
    lines += ["", *table(words["split_head"], parts)] if parts else []
    quality = runs.get("quality", {})
    judged = [
        (words[name], f"{found['kl_to_fp32']:.4f}", percent(found["same_top_share"]), f"{found['perplexity']:.2f}")
        for name in JUDGED
        if (found := quality.get(name)) and "kl_to_fp32" in found
    ]
    lines += ["", *table(words["quality_head"], judged)] if judged else []
    rounds = max((len(found["runs"]) for facts in levels.values() for found in facts["systems"].values()), default=1)
    return "\n".join([*lines, "", f"{words['quality_note'].format(rounds=rounds)} {machine(result, words)}"])


def middle(systems: Mapping[str, Mapping[str, Any]], level: str, name: str, form: str) -> str:
    """Median over the rounds of one system at one level; nothing where it was not measured."""
    values = [run[name] for run in systems.get(level, {}).get("runs", ()) if run.get(name) is not None]
    return form.format(statistics.median(values)) if values else ""


def minutes(run: Mapping[str, Any]) -> str:
    """Of a whole recipe, and of its training."""
    return f"{run['wall_s'] / 60:.1f} ({run['summary']['seconds']['base'] / 60:.1f})"


def one_line(text: str) -> str:
    """Text of several lines as one, with nothing that Markdown would read."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " / ".join(line.strip() for line in text.splitlines() if line.strip()))


TYPES = ("fp32", "bf16")
RENDERERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], str]] = {
    "quickstart": quickstart, "models": models, "experts": experts, "linear-attention": linear_attention,
    "tokenizer": tokenizer, "train": train, "energy": energy, "serve": serve, "pretrain-recipes": pretrain_recipes,
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
