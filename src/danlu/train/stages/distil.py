"""Distillation: a student learns to say what a teacher would, token by token (Hinton et al. 2015).

    student = shorter(load_model(path, precision="fp32"), keep_layers=15)
    rows = encode_rows(rows, student.chat, config.max_row_tokens).items      # train/answers
    asked = ask(teacher, student, rows, config, job)          # or kept on disk, with config.kept_answers
    metrics = train(student, rows, [], config, job, teacher=asked)

What is learnt from is the divergence of both at every supervised token (losses/distil), and with ``hidden_weight`` also
what the teacher thinks on the way. Students come from train/student.py, answers from train/teacher.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError
from danlu.data.packing import pack
from danlu.models.model import Model
from danlu.text.chat import RenderedChat
from danlu.train.batches import RowBatches
from danlu.train.loss import collate
from danlu.train.losses.distil import DistilConfig, TopLogprobs, distil_loss, soft_rows
from danlu.train.losses.tokens import by_rows, rows_at_a_time
from danlu.train.matching import Matching
from danlu.train.method import prepare, rates
from danlu.train.run import Job, Summed, TrainingRun
from danlu.train.samples import SampledConfig, Samples, asks_of_chats
from danlu.train.settings import Usual
from danlu.train.student import check_vocabulary
from danlu.train.teacher import LiveTeacher, Teacher, keep_answers, read_states


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(SampledConfig):
    """Learn from a teacher."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=3e-4, adapter_rate=3e-3)

    loss: DistilConfig = field(default_factory=DistilConfig)
    """How far both are apart."""
    hidden_weight: float = 0.0
    """Weight of the distance between hidden states, a mean over blocks that are matched evenly; 0 for none."""
    hidden_cosine: bool = False
    """That distance is 1 - cosine, where it else is the mean squared difference."""
    kept_answers: int | None = None
    """Likeliest tokens of each answer that are kept on disk, 8 bytes each; null asks the teacher in every step."""
    keep_layers: int | None = None
    """Without a student: it begins as so many of the teacher's blocks, taken evenly."""
    tokens_per_step: int = 1024
    """Most tokens in a batch; rows are packed into it."""
    max_row_tokens: int = 512
    """Longer rows are left out and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens_per_step", "max_row_tokens", "kept_answers", "keep_layers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.max_row_tokens > self.tokens_per_step:
            raise ConfigError(
                f"max_row_tokens {self.max_row_tokens} is more than tokens_per_step {self.tokens_per_step}.",
                "A batch must hold at least one row.",
            )
        if self.hidden_weight < 0:
            raise ConfigError(f"hidden_weight is {self.hidden_weight}.", "Use 0 or more.")
        if self.hidden_weight and self.kept_answers is not None:
            raise ConfigError(
                "hidden_weight and kept_answers are both given, but kept answers have no hidden states.",
                "Leave kept_answers out.",
            )


def ask(
    teacher: Model,
    student: Model,
    items: Sequence[RenderedChat],
    config: DistillationConfig,
    job: Job,
    *,
    root: Path | None = None,
) -> Teacher:
    """Who answers for ``items``: training rows, then validation rows. With ``kept_answers`` the teacher is asked now,
    under ``root`` or where the run works, and no longer needed. Raises ModelError when vocabularies differ."""
    check_vocabulary(teacher, student)
    live = LiveTeacher(teacher, student.config.vocabulary_size)
    if config.kept_answers is None:
        return live
    return keep_answers(live, items, config.kept_answers, config.loss.temperature, root or job.work / "teacher", job)


def train(
    model: Model,
    train_rows: Sequence[RenderedChat],
    validation_rows: Sequence[RenderedChat],
    config: DistillationConfig,
    job: Job,
    *,
    teacher: Teacher,
) -> dict[str, Any]:
    """Train the student ``model`` in place; returns metrics. ``teacher`` was asked about the same rows."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    base_parameters = model.num_parameters()
    items = [*train_rows, *validation_rows[: config.max_validation_rows]]
    lengths = [len(item.ids) for item in items]
    held_out = pack(lengths[len(train_rows) :], config.tokens_per_step, seed=0)
    watched = [[len(train_rows) + row for row in rows] for rows in held_out]
    parameters = prepare(model, config)
    matching = Matching(model, teacher, is_cosine=config.hidden_cosine) if config.hidden_weight else None
    if matching is not None:
        parameters |= matching.parameters()
    batches = RowBatches(
        range(len(train_rows)),
        lambda row: lengths[row],
        seed=job.seed,
        tokens_per_step=config.tokens_per_step,
        micro_tokens=config.micro_tokens,
    )

    def loss_of(rows: Sequence[int]) -> Summed:
        batch, head = collate([items[row] for row in rows]), model.network.head
        assert head is not None
        mine = read_states(model.network, batch, () if matching is None else matching.mine)
        said = teacher.say(rows, batch, () if matching is None else matching.theirs)
        total, parts = distil_loss(head, mine.last, said.answer, batch.targets.to(model.device), config.loss)
        if matching is not None:
            apart = matching.distance(mine.inner, said.inner)
            total, parts = total + config.hidden_weight * apart, {**parts, "hidden_distance": apart.detach()}
        return Summed(total, len(batch.targets), batch.num_tokens, parts)

    samples = Samples(model, config, asks_of_chats(model, validation_rows))
    tuned = rates(model.network, config)
    with TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = score(model, teacher, items, watched, config.loss)
                step.report({f"validation_{name}": value for name, value in found.items()})
        scores = {"validation": score(model, teacher, items, watched, config.loss)} if watched else {}
    if matching is not None:
        matching.remove()
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "packing_fill": round(batches.fill, 4),
        "trainable_share": metrics["trainable_parameters"] / base_parameters,
        **scores,
    }


@torch.no_grad()
def score(
    model: Model,
    teacher: Teacher,
    items: Sequence[RenderedChat],
    batches: Sequence[Sequence[int]],
    config: DistilConfig,
) -> dict[str, float]:
    """Means over the supervised tokens of batches of row numbers: the loss trained on (without hidden states),
    KL(teacher ‖ student) at its temperature, next-token loss, and how often both find the same token likeliest."""
    plain = DistilConfig(temperature=config.temperature)
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    for rows in batches:
        batch, head = collate([items[row] for row in rows]), model.network.head
        assert head is not None
        hidden, answer = read_states(model.network, batch).last, teacher.say(rows, batch).answer
        targets = batch.targets.to(model.device)

        def tell(some: Tensor, places: slice, head: nn.Module = head, answer: Any = answer, targets: Tensor = targets):
            theirs = answer.at(places) if isinstance(answer, TopLogprobs) else answer[0](answer[1][places])
            first = theirs.ids[:, 0] if isinstance(theirs, TopLogprobs) else theirs.argmax(dim=-1)
            logits = head(some).float()
            soft, kl = soft_rows(logits, theirs, config), soft_rows(logits, theirs, plain) / plain.temperature**2
            hard = nn.functional.cross_entropy(logits, targets[places], reduction="none")
            mixed = (1 - config.hard_share) * soft + config.hard_share * hard
            return mixed, torch.stack([kl, hard, (logits.argmax(dim=-1) == first).float()], dim=1)

        mixed, more = by_rows(tell, hidden, [], rows_at_a_time(head))
        sums += torch.cat([mixed.double().sum().view(1), more.double().sum(dim=0)]).cpu()
        count += len(targets)
    means = (sums / count).tolist()
    return dict(zip(("loss", "kl", "next_token_loss", "agreement"), means, strict=True))


plugin = train
