"""Supervised fine-tuning on conversations: LoRA adapters, packed batches, loss on the answers only.

The loop is here, in ``finetune``. A killed run resumes from its last checkpoint and ends with the same weights: the
order of batches comes from the seed alone, and everything else that matters is in the checkpoint.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.device import seed_everything
from danlu.core.errors import ConfigError, TrainError
from danlu.core.events import Events
from danlu.core.memory import release_memory
from danlu.data.packing import fill_rate, pack
from danlu.models.model import Model
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from danlu.train.lora import LoraConfig, add_lora, load_lora_state, lora_state
from danlu.train.loss import PackedBatch, collate, summed_loss
from danlu.train.optim import OptimConfig, make_optimizer, rate_at

RELEASE_EVERY = 4
"""Steps between handing freed memory back: batches differ in size, and the allocator keeps what does not fit again."""
MAX_SKIPPED_STEPS = 5
"""Steps whose gradient is not a number are skipped; after this many in a row training stops."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Fine-tune on conversations with LoRA."""

    steps: int = 100
    """Optimiser steps."""
    tokens_per_step: int = 1024
    """Most tokens in a batch; rows are packed into it."""
    max_row_tokens: int = 512
    """Longer rows are left out and counted."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    validate_every: int = 40
    """Steps between losses on the validation rows."""
    max_validation_rows: int = 60
    """Validation rows used."""
    save_every: int = 20
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_step", "max_row_tokens", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.max_row_tokens > self.tokens_per_step:
            raise ConfigError(
                f"max_row_tokens {self.max_row_tokens} is more than tokens_per_step {self.tokens_per_step}.",
                "A batch must hold at least one row.",
            )


@dataclass(frozen=True)
class Rows:
    """Encoded conversations and how many were left out, by reason."""

    encoded: list[RenderedChat]
    left_out: dict[str, int]


def encode_rows(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Rows:
    """Rows with ``messages`` as ids and answer masks.

    Left out: rows too long (``too_long``) or without a token to learn (``no_answer``). Raises TrainError when no row
    is left, or when no answer ends with the token that ends answers in serving: the model would never stop.
    """
    encoded: list[RenderedChat] = []
    left_out = {"too_long": 0, "no_answer": 0}
    learns_to_stop = False
    for row in rows:
        rendered = chat.render(conversation(row), add_generation_prompt=False)
        if len(rendered.ids) > max_tokens:
            left_out["too_long"] += 1
        elif not any(rendered.is_answer[1:]):
            left_out["no_answer"] += 1
        else:
            encoded.append(rendered)
            pairs = zip(rendered.ids, rendered.is_answer, strict=True)
            learns_to_stop |= any(learnt and i in chat.tokenizer.end_ids for i, learnt in pairs)
    if not encoded:
        raise TrainError(
            f"No row can be trained on: {left_out['too_long']} are longer than {max_tokens} tokens, "
            f"{left_out['no_answer']} have no assistant answer.",
            "Look at the data, or raise max_row_tokens.",
        )
    if not learns_to_stop:
        raise TrainError(
            "No answer ends with the token that ends answers, so the model would never learn to stop.",
            f"Check the chat template; the end token is {', '.join(chat.tokenizer.end_tokens)}.",
        )
    return Rows(encoded, {reason: count for reason, count in left_out.items() if count})


def finetune(
    model: Model,
    train: Sequence[RenderedChat],
    validation: Sequence[RenderedChat],
    config: SftConfig,
    *,
    seed: int,
    work: Path,
    log_path: Path,
    events: Events,
) -> dict[str, Any]:
    """Train adapters on ``model`` in place; returns metrics. ``work`` keeps checkpoints, ``log_path`` the curve."""
    assert train, "finetune needs at least one row"
    seed_everything(seed)
    base_parameters = model.num_parameters()
    parameters = add_lora(model, config.lora)
    optimizer = make_optimizer(parameters, config.optim)
    lengths = [len(row.ids) for row in train]
    batches = _batch_order(lengths, config, seed)
    held_out = _validation_batches(validation[: config.max_validation_rows], config.tokens_per_step)
    log = _CurveLog(work / "log.jsonl")
    done = _resume(model, optimizer, work, log, events)

    def save() -> None:
        tensors = {**lora_state(model), **optimizer_tensors(optimizer)}
        save_checkpoint(work, done.step, tensors, {**vars(done), "lines": log.num_lines})

    is_between_steps = True
    with (
        events.bar("train", total=config.steps, unit="step", done=done.step) as bar,
        _interrupts_held_back() as let_interrupt,
    ):
        try:
            while done.step < config.steps:
                let_interrupt()
                is_between_steps = False
                started = time.perf_counter()
                batch = collate([train[row] for row in batches[done.step]])
                rate = rate_at(done.step, config.steps, config.optim)
                loss, norm = _step(model, parameters, optimizer, batch, rate, config.optim.clip_norm)
                done.count(batch.num_tokens, time.perf_counter() - started, is_skipped=not math.isfinite(norm))
                log.add(step=done.step, loss=loss, lr=rate, grad_norm=norm)
                is_between_steps = True
                bar.advance(1, loss=loss, tokens_per_s=batch.num_tokens / (time.perf_counter() - started))
                if done.step % RELEASE_EVERY == 0:
                    release_memory()
                if held_out and (done.step % config.validate_every == 0 or done.step == config.steps):
                    log.add(step=done.step, validation_loss=_validate(model, held_out))
                if done.step % config.save_every == 0 or done.step == config.steps:
                    save()
            let_interrupt()
        except KeyboardInterrupt:
            if is_between_steps:
                save()
                events.say(f"Saved after step {done.step}; the same command goes on from there.")
            raise
    log.copy_to(log_path)
    losses = [line["loss"] for line in log.lines if "loss" in line]
    validation_losses = [line["validation_loss"] for line in log.lines if "validation_loss" in line]
    return {
        "steps": config.steps,
        "train_rows": len(train),
        "packing_fill": round(fill_rate(batches, lengths, config.tokens_per_step), 4),
        "trainable_parameters": sum(p.numel() for p in parameters),
        "trainable_share": sum(p.numel() for p in parameters) / base_parameters,
        "train_tokens_per_s": round(done.tokens / done.seconds, 1),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "validation_loss": validation_losses[-1] if validation_losses else None,
        "skipped_steps": done.skipped,
    }


@dataclass
class _Done:
    """What has been done so far, earlier attempts included."""

    step: int = 0
    tokens: int = 0
    """Tokens of all rows trained on."""
    seconds: float = 0.0
    skipped: int = 0
    """Steps whose gradient was not a number."""
    skipped_in_a_row: int = 0

    def count(self, tokens: int, seconds: float, *, is_skipped: bool) -> None:
        """One more step; TrainError when too many in a row were skipped."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.skipped += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise TrainError(
                f"The gradient was not a number {self.skipped_in_a_row} steps in a row (up to step {self.step}).",
                "Lower optim.learning_rate; the last good checkpoint is kept.",
            )


@contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until the yielded function is called, so that no step is cut in two; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    is_asked = False

    def note(*_: object) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True

    def let_interrupt() -> None:
        if is_asked:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield let_interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def _validation_batches(rows: Sequence[RenderedChat], budget: int) -> list[PackedBatch]:
    return [collate([rows[i] for i in batch]) for batch in pack([len(row.ids) for row in rows], budget, seed=0)]


def _batch_order(lengths: Sequence[int], config: SftConfig, seed: int) -> list[list[int]]:
    """Row indices of every step's batch: one packed epoch after another, each shuffled by its own seed."""
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < config.steps:
        batches += pack(lengths, config.tokens_per_step, seed=seed + epoch)
        epoch += 1
    return batches[: config.steps]


def _step(
    model: Model,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: PackedBatch,
    rate: float,
    clip_norm: float,
) -> tuple[float, float]:
    """One optimiser step; returns the mean loss in nats a supervised token, and the gradient norm before clipping.

    A step whose gradient is not finite changes nothing.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = summed_loss(model.network, batch) / batch.targets.shape[0]
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), norm


@torch.no_grad()
def _validate(model: Model, batches: Sequence[PackedBatch]) -> float:
    """Mean loss in nats a supervised token."""
    total = sum(float(summed_loss(model.network, batch)) for batch in batches)
    return total / sum(int(batch.targets.shape[0]) for batch in batches)


def _resume(model: Model, optimizer: torch.optim.Optimizer, work: Path, log: _CurveLog, events: Events) -> _Done:
    """Load the newest whole checkpoint, if any; returns what is done already."""
    checkpoint = load_checkpoint(work)
    if checkpoint is None:
        log.truncate(0)
        return _Done()
    adapters: dict[str, Tensor] = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("optimizer.")}
    load_lora_state(model, adapters)
    load_optimizer_tensors(optimizer, checkpoint.tensors)
    values = dict(checkpoint.values)
    log.truncate(values.pop("lines"))
    events.say(f"Going on after step {checkpoint.step}.")
    return _Done(**values)


class _CurveLog:
    """The loss curve as JSON lines, cut back to the checkpoint on resume."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []

    @property
    def num_lines(self) -> int:
        return len(self.lines)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` lines of the file and go on after them."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        old = self._path.read_text(encoding="utf-8").splitlines()[:count] if self._path.exists() else []
        self.lines = [json.loads(line) for line in old]
        self._path.write_text("".join(line + "\n" for line in old), encoding="utf-8")

    def add(self, **values: float) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}  # NaN is not JSON
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in finite.items()}
        self.lines.append(rounded)
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(rounded) + "\n")

    def copy_to(self, path: Path) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")


plugin = finetune
