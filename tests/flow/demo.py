"""A store that looks like the product-copy run's, made of invented numbers: what report tests render."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from danlu.core.events import Events
from danlu.core.files import write_json, write_jsonl
from danlu.lineage.stage import StageContext, run_stage
from danlu.lineage.store import Artifact, Store


def build(root: Path) -> tuple[Store, dict[str, Artifact]]:
    """The store, and the report's inputs."""
    store, made = Store(root), {}

    def add(name: str, kind: str, inputs: dict[str, str], files: dict[str, Any], **config: Any) -> None:
        def body(context: StageContext) -> dict[str, Any]:
            for path, value in files.items():
                write = write_jsonl if path.endswith(".jsonl") else write_json
                write(context.output / path, value)
            return files.get("metrics.json", {}) if kind == "script" else {}

        sources = {key: made[source] for key, source in inputs.items()}
        made[name], _ = run_stage(
            store,
            name=name,
            kind=kind,
            stage=kind,
            version=1,
            config=config,
            inputs=sources,
            seed=17,
            body=body,
            events=Events(),
        )

    add("reviews", "source", {}, {"a.json": 1}, package="some-package", version="1.7.0", member="d/reviews.parquet")
    add("base", "model", {}, {"b.json": 1}, package="some-model", version="0.1.2", member="m/model.gguf")
    add("data", "data", {"rows": "reviews"}, {"card.json": card()})
    add("train", "adapter", {"model": "base", "data": "data"}, {"log.jsonl": log()})
    add("int8", "model", {"model": "base", "adapter": "train"}, {"c.json": 1})
    for number, (name, model) in enumerate({"eval_base": "base", "eval_tuned": "train", "eval_int8": "int8"}.items()):
        files = {"metrics.json": metrics(number), "samples.jsonl": samples(name)}
        add(name, "evaluation", {"model": model, "data": "data"}, files)
    sources = {"baseline": "eval_base", "candidate": "eval_tuned"}
    add("compared", "comparison", sources, {"comparison.json": comparison()})
    chosen = {"data": "data", "train": "train", "base": "eval_base", "tuned": "eval_tuned", "int8": "eval_int8"}
    peer = {"speedup_vs_transformers": 5.62, "transformers_items_per_s": {"float32": 2.4}, "transformers_version": "5"}
    add("peer", "script", {"model": "train"}, {"metrics.json": peer})
    chosen.update(compared="compared", peer="peer")
    return store, {name: made[stage] for name, stage in chosen.items()}


def card() -> dict[str, Any]:
    dropped = {"too_short": 3120, "no_attributes": 2210, "near_duplicate": 641, "first_person": 402, "duplicate": 21}
    return {"rows_in": 23486, "rows_kept": 23486 - sum(dropped.values()), "dropped": dropped}


def log() -> list[dict[str, float]]:
    noise = random.Random(1)
    rows: list[dict[str, float]] = []
    for step in range(1, 301):
        loss = 1.6 + 1.9 * math.exp(-step / 45) + noise.gauss(0, 0.09)
        rows.append({"step": step, "loss": loss, "tokens_per_s": 1200.0, "lr": 1e-4, "grad_norm": 0.5})
        if step % 50 == 0:
            rows.append({"step": step, "validation_loss": 1.72 + 1.9 * math.exp(-step / 45)})
    return rows


def metrics(number: int) -> dict[str, Any]:
    def around(value: float, width: float) -> dict[str, float]:
        return {"value": value, "low": value - width, "high": value + width * 1.1}

    return {
        "bleu4": around((1.21, 6.84, 6.71)[number], 0.5),
        "chrf": around((22.4, 31.9, 31.7)[number], 0.8),
        "coverage": around((0.412, 0.871, 0.866)[number], 0.03),
        "invention": around((0.233, 0.081, 0.084)[number], 0.02),
        "items_per_s": (9.1, 8.8, 15.3)[number],
        "size_bytes": (538_090_408, 540_933_112, 139_102_208)[number],
        "signatures": {"bleu4": "nrefs:1|case:mixed|tok:13a"},
        "task": {"name": "product_copy", "version": 1},
        "items": 240,
    }


def comparison() -> dict[str, Any]:
    sure = {
        "difference": 5.63,
        "low": 4.9,
        "high": 6.4,
        "p_higher": 0.0005,
        "p_lower": 1.0,
        "is_within_baseline": False,
    }
    unsure = {**sure, "difference": -0.012, "low": -0.03, "high": 0.01, "p_higher": 0.88, "p_lower": 0.121}
    return {"bleu4": sure, "invention": unsure}


def samples(name: str) -> list[dict[str, Any]]:
    prompt = "Title: Floral wrap dress\nClass: Dresses\nMaterial: cotton; fit: relaxed; colour: navy"
    output = {
        "eval_base": "Here is a product description.\n\n**Floral Dress** <b>Perfect</b> for every occasion!",
        "eval_tuned": "A relaxed navy wrap dress in soft cotton, with a floral print and a waist that ties.",
        "eval_int8": "A relaxed navy wrap dress in soft cotton with a floral print. The waist ties at the side.",
    }[name]
    row = {"prompt": [{"role": "user", "content": prompt}], "reference": "Soft cotton, relaxed fit.", "output": output}
    return [{"id": f"p{number}", **row} for number in range(9)]
