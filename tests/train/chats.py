"""A few conversations to train a tiny model on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from danlu.core.events import Display, Events, Silent
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.train.lora import LoraConfig
from danlu.train.optim import OptimConfig
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune
from tests.tiny import COLOURS, GARMENTS, MATERIALS

CONFIG = SftConfig(
    steps=20,
    tokens_per_step=160,
    max_row_tokens=80,
    save_every=5,
    validate_every=10,
    samples=0,
    lora=LoraConfig(rank=2),
    optim=OptimConfig(learning_rate=1e-2),
)


def chats(count: int) -> list[dict[str, Any]]:
    """At most 40 rows with ``messages``, of different lengths; no question is asked twice."""
    rows = []
    for number, (colour, garment) in enumerate(itertools.islice(itertools.product(COLOURS, GARMENTS), count)):
        sentence = f"A {colour} {garment} of {MATERIALS[number % len(MATERIALS)]}."
        ask = {"role": "user", "content": f"{colour} {garment}"}
        rows.append({"messages": [ask, {"role": "assistant", "content": sentence * (1 + number % 2)}]})
    return rows


def train(
    model: Model, work: Path, config: SftConfig = CONFIG, display: Display | None = None, seed: int = 3
) -> dict[str, Any]:
    """Fine-tune on 24 rows, validate on 4."""
    rows = encode_rows(chats(28), model.chat, config.max_row_tokens).encoded
    events = Events(display=display or Silent())
    curve = work.parent / "curve.jsonl"
    return finetune(model, rows[4:], rows[:4], config, Job(work=work, log_path=curve, events=events, seed=seed))


def fresh(folder: Path) -> Model:
    """The base in fp32."""
    return load_model(folder, precision="fp32")


class Stop(Silent):
    """Raises when so many steps are done, as a crash or Ctrl-C would."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.after = after
        self.error = error
        self.said: list[str] = []

    def update(self, done: int, metrics: dict[str, float]) -> None:
        if done == self.after and metrics:
            raise self.error

    def say(self, text: str) -> None:
        self.said.append(text)
