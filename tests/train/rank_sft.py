"""Fine-tuning as each of several processes does it (rank_work.py starts it), and as one process does it alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from danlu.core.events import Events
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig
from danlu.train.optim import OptimConfig
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune
from danlu.train.start import load_to_train
from danlu.train.world import World
from tests.train.chats import Stop, chats

_FULL = SftConfig(
    steps=8, tokens_per_step=160, max_row_tokens=80, save_every=3, validate_every=4, precision="fp32", lora=None,
    optim=OptimConfig(learning_rate=3e-3, weight_decay=0.1),
)  # fmt: skip
CASES: dict[str, SftConfig] = {
    "full": _FULL,
    "lora": dataclasses.replace(_FULL, lora=LoraConfig(rank=2), optim=OptimConfig(learning_rate=1e-2)),
    "few": dataclasses.replace(_FULL, tokens_per_step=80),
    "rich": dataclasses.replace(
        _FULL, micro_tokens=40, recompute="full", keep="best", optim=OptimConfig(learning_rate=3e-3, ema_decay=0.5)
    ),
}
"""``few``: one row a step, so that a process has none; ``rich``: everything at once."""
COARSE = dataclasses.replace(
    _FULL,
    precision="bf16",
    optim=OptimConfig(name="adamw8bit", learning_rate=3e-3, weight_decay=0.1, clip_norm=None),
)
"""Few digits everywhere: what differs in the last one shows. Without clipping, for a norm is added up in shards."""
LARGE = dataclasses.replace(_FULL, tokens_per_step=320)
"""Several rows a step for each of two processes."""
KINDS = ("ddp", "fsdp")


class Crash(Exception):
    """The process is gone."""


def run(
    model_folder: Path, work: Path, config: SftConfig, world: World, *, stop: int = -1, most_tokens: int = 0
) -> tuple[Model, dict[str, Any]]:
    """One run; ``stop`` crashes it after a step. With ``most_tokens`` the second process has no memory for more."""
    model = load_to_train(model_folder, config, torch.device("cpu"))
    if most_tokens and world.rank == 1:
        model.network.register_forward_pre_hook(lambda _, inputs: _allocate(inputs[0], most_tokens))
    rows = encode_rows(chats(28), model.chat, config.max_row_tokens).encoded
    events = Events(display=Stop(stop, Crash()))
    log_path = work.parent / f"{work.name}.jsonl"
    job = Job(work=work, log_path=log_path, events=events, seed=3, world=world)
    metrics = finetune(model, rows[4:], rows[:4], config, job)
    kept = {name: metrics[name] for name in ("steps", "validation_loss", "best_step")}
    return model, kept


def _allocate(ids: torch.Tensor, most_tokens: int) -> None:
    if torch.is_grad_enabled() and ids.shape[0] > most_tokens:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def losses(work: Path) -> list[float]:
    """Of every step; a run's first process writes them."""
    lines = [json.loads(line) for line in (work.parent / f"{work.name}.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def finetune_all(world: World, model_folder: str, folder: str) -> dict[str, Any]:
    """Every case both ways, each crashed once on the way; the first process saves what was learnt."""
    answers: dict[str, Any] = {}
    for case, plain in CASES.items():
        for kind in KINDS:
            config = dataclasses.replace(plain, parallel=kind)
            work = Path(folder) / f"{case}-{kind}"
            try:
                run(Path(model_folder), work, config, world, stop=5)
            except Crash:
                answers[work.name] = {"crashed": True}
            model, kept = run(Path(model_folder), work, config, world)
            answers[work.name] |= kept
            if world.is_first:
                save(model, config, work)
    for kind in KINDS:
        run(Path(model_folder), Path(folder) / f"coarse-{kind}", dataclasses.replace(COARSE, parallel=kind), world)
    return answers


def save(model: Model, config: SftConfig, work: Path) -> None:
    """What was learnt, beside ``work``."""
    folder = work.parent / f"{work.name}-saved"
    if config.lora is None:
        save_model(model, folder)
    else:
        save_adapter(model, folder, config.lora, base="x")


def finetune_cramped(world: World, model_folder: str, folder: str, kind: str) -> dict[str, Any]:
    """The second process has memory for about one row at a time."""
    config = dataclasses.replace(LARGE, parallel=kind)
    _, kept = run(Path(model_folder), Path(folder) / f"cramped-{kind}", config, world, most_tokens=80)
    return kept
