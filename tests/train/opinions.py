"""A few compared answers to train a tiny model on: people like answers that name the material first."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from danlu.core.events import Display, Events, Silent
from danlu.models.model import Model
from danlu.train.lora import LoraConfig
from danlu.train.optim import OptimConfig
from danlu.train.preferences import encode_judged, encode_pairs
from danlu.train.run import Job
from danlu.train.stages.dpo import DpoConfig, train
from tests.tiny import COLOURS, GARMENTS, MATERIALS

CONFIG = DpoConfig(
    steps=8,
    rows_per_step=4,
    max_row_tokens=80,
    save_every=4,
    validate_every=4,
    samples=0,
    lora=LoraConfig(rank=4),
    optim=OptimConfig(learning_rate=5e-3),
)


def pairs(count: int) -> list[dict[str, Any]]:
    """At most 40 rows of prompt, chosen and rejected, of different lengths."""
    rows = []
    for number, (colour, garment) in enumerate(itertools.islice(itertools.product(COLOURS, GARMENTS), count)):
        material = MATERIALS[number % len(MATERIALS)]
        rejected = f"A {colour} {garment}." * (1 + number % 3)
        rows.append({"prompt": f"{colour} {garment}", "chosen": f"{material} is what it is.", "rejected": rejected})
    return rows


def job_in(folder: Path, display: Display | None = None, seed: int = 3) -> Job:
    """Works in ``folder``/work, leaves ``folder``/curve.jsonl."""
    return Job(
        work=folder / "work", log_path=folder / "curve.jsonl", events=Events(display=display or Silent()), seed=seed
    )


def learn(model: Model, folder: Path, config: DpoConfig = CONFIG, display: Display | None = None) -> dict[str, Any]:
    """Train on 16 rows, validate on 4."""
    encode = encode_pairs if config.kto is None else encode_judged
    rows = encode(pairs(20 if config.kto is None else 10), model.chat, config.max_row_tokens).items
    return train(model, rows[4:], rows[:4], config, job_in(folder, display))
