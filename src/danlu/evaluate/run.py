"""Run a task on a model: answers to every example, their scores with intervals, and how fast they came.

The model is an argument (any ``LanguageModel``); this file knows no weights and no servers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core import plugins
from danlu.core.errors import ConfigError, DataError, nearest
from danlu.core.events import Events
from danlu.core.files import read_jsonl, write_json, write_jsonl
from danlu.core.records import GenerateOptions, LanguageModel
from danlu.evaluate.metrics import score_all
from danlu.evaluate.tasks import Example, Task


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which task, on how many items, with which answers."""

    task: str = "product_copy"
    """A file of evaluate/tasks/."""
    rows: str = "test.jsonl"
    """The held-out rows inside the data artifact."""
    max_items: int = 1000
    """Items evaluated: the first so many."""
    max_tokens: int = 96
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 is greedy: the same answers every time."""

    def __post_init__(self) -> None:
        if self.max_items < 1:
            raise ConfigError(f"max_items is {self.max_items}.", "Use 1 or more.")
        known = plugins.names("evaluate.tasks")
        if self.task not in known:
            raise ConfigError(f"task is {self.task!r}.", nearest(self.task, known))
        self.options()

    def options(self) -> GenerateOptions:
        """How answers are written; RequestError when they cannot be."""
        return GenerateOptions(max_tokens=self.max_tokens, temperature=self.temperature, seed=0)


def evaluate(
    model: LanguageModel, rows: Iterable[Mapping[str, Any]], config: EvaluateConfig, out: Path, events: Events
) -> dict[str, Any]:
    """Write samples.jsonl and metrics.json into ``out``; returns the metrics."""
    task: Task = plugins.load("evaluate.tasks", config.task)
    examples = task.examples(rows)[: config.max_items]
    if not examples:
        raise DataError("There are no rows to evaluate on.", f"Is {config.rows} empty?")
    outputs, tokens, seconds = _answer(model, examples, config, events)
    metrics = task.metrics(examples)
    scored = score_all(metrics, outputs, [e.reference for e in examples])
    write_jsonl(
        out / "samples.jsonl",
        (
            {"id": e.id, "prompt": e.prompt, "reference": e.reference, "facts": e.facts, "output": output}
            for e, output in zip(examples, outputs, strict=True)
        ),
    )
    result: dict[str, Any] = {
        **scored,
        "items": len(examples),
        "items_per_s": round(len(examples) / seconds, 3),
        "output_tokens_per_s": round(tokens / seconds, 1),
        "output_tokens_per_item": round(tokens / len(examples), 1),
        "task": {"name": task.name, "version": task.version},
        "signatures": {name: metric.signature for name, metric in metrics.items()},
    }
    write_json(out / "metrics.json", result)
    return result


def _answer(
    model: LanguageModel, examples: Sequence[Example], config: EvaluateConfig, events: Events
) -> tuple[list[str], int, float]:
    """Answers, tokens written, seconds. One short answer first, not counted: kernels warm up."""
    model.generate([examples[0].prompt], GenerateOptions(max_tokens=2))
    with events.bar("generate", total=len(examples), unit="item") as bar:
        started = time.perf_counter()
        completions = model.generate([e.prompt for e in examples], config.options(), bar.advance)
        seconds = time.perf_counter() - started
    return [c.text.strip() for c in completions], sum(c.usage.completion_tokens for c in completions), seconds


def read_samples(folder: Path) -> tuple[list[Example], list[str]]:
    """Examples and outputs of a finished evaluation; DataError when the folder holds none."""
    rows = list(read_jsonl(folder / "samples.jsonl"))
    try:
        examples = [
            Example(id=r["id"], prompt=r["prompt"], reference=r["reference"], facts=r["facts"]) for r in rows
        ]  # fmt: skip
        return examples, [r["output"] for r in rows]
    except KeyError as error:
        raise DataError(f"{folder}/samples.jsonl has a row without {error.args[0]!r}.", "Evaluate again.") from error
