"""The model as it was before training: its log-probabilities, taken once, so that no second copy of it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from danlu.core.files import read_json_object, sha256_json, write_json
from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.model import Model, set_layer
from danlu.text.chat import RenderedChat
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.lora import LoraLinear
from danlu.train.losses.completions import read_completions
from danlu.train.settings import Job

_KEPT = "reference.json"


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Inside the block the network is the one it was before LoRA, in evaluation mode and without gradients."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (LoraLinear, LoraGroupedLinear))}
    was_training = network.training
    try:
        for name, layer in layers.items():
            set_layer(network, name, layer.base)
        network.eval()
        with torch.no_grad():
            yield
    finally:
        for name, layer in layers.items():
            set_layer(network, name, layer)
        network.train(was_training)


def reference_sums(model: Model, answers: Sequence[RenderedChat], job: Job) -> list[float]:
    """Log-probability of each answer before anything was learnt; the processes share the work.

    Call it before the first step. The numbers are kept in the run's work folder: when a run goes on that trains all
    weights, the model it began with is no longer there.
    """
    key = sha256_json([answer.ids for answer in answers])
    path = job.work / _KEPT
    kept = read_json_object(path) if job.world.is_first and path.is_file() else {}
    sums = job.world.share_json(kept.get("sums") if kept.get("key") == key else None)
    if sums is None:
        sums = _read(model, answers, job)
        if job.world.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": key, "sums": sums})
    return sums


def _read(model: Model, answers: Sequence[RenderedChat], job: Job) -> list[float]:
    parts = packs([len(answer.ids) for answer in answers], PACK_TOKENS)
    rounds = -(-len(parts) // job.world.size)  # each process reads as often as any other, as sharded weights ask
    sums = [0.0] * len(answers)
    with adapters_off(model.network), job.events.bar("reference", total=rounds, unit="batch") as bar:
        for number in range(rounds):
            place = number * job.world.size + job.world.rank
            part = parts[min(place, len(parts) - 1)]
            found = read_completions(model.network, [answers[i] for i in part]).sums()
            if place < len(parts):
                for i, value in zip(part, found.tolist(), strict=True):
                    sums[i] = value
            bar.advance(1)
    return job.world.sum(sums)
