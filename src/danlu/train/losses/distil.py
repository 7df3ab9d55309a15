"""Losses of a student that learns from a teacher: what the teacher says of each token, and what it thinks on the way.

Each is a sum over M tokens to divide by their number. Divergences are between softmaxes at one temperature and are
multiplied by its square, so that gradients keep their size (Hinton et al. 2015, section 2). Knows neither network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError
from danlu.train.losses.tokens import Head, by_rows, rows_at_a_time, trained_by


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """What the student is held to."""

    beta: float = 0.0
    """0: forward KL, covers all that the teacher would say; 1: reverse KL, says only what it would; between: JSD."""
    temperature: float = 1.0
    """Both softmaxes are flattened by this."""
    hard_share: float = 0.0
    """Share of the plain next-token loss in the whole."""

    def __post_init__(self) -> None:
        for name in ("beta", "hard_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 to 1.")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}.", "Use a positive number such as 2.0.")


@dataclass(frozen=True)
class TopLogprobs:
    """The k likeliest of V tokens as a teacher saw them at M places, and the mass of all others together.

    With k < V a divergence is taken between these k + 1 outcomes. That is never more than the divergence between all V
    (what is hidden is how the rest is spread), and equal to it when k = V.
    """

    logprobs: Tensor
    """(M, k) at ``temperature``."""
    ids: Tensor
    """(M, k) their tokens."""
    rest: Tensor
    """(M,) log of the others' mass; -inf when k = V."""
    temperature: float
    """At which they were made; the rest's mass cannot be had at another."""

    def at(self, rows: slice) -> TopLogprobs:
        """Those of some places."""
        return TopLogprobs(self.logprobs[rows], self.ids[rows], self.rest[rows], self.temperature)


@torch.no_grad()
def top_logprobs(logits: Tensor, k: int, temperature: float = 1.0) -> TopLogprobs:
    """Keep the k likeliest of logits (M, V)."""
    everything = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    values, ids = everything.topk(min(k, logits.shape[-1]), dim=-1)
    return TopLogprobs(values, ids, _mass_of_rest(everything, ids), temperature)


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Log-probabilities (M, V) of both → generalised Jensen-Shannon divergence (M,) in nats.

    From Agarwal et al. 2024, eq. 1: beta 0 is KL(teacher ‖ student), beta 1 is KL(student ‖ teacher); between them both
    are held to the mixture beta · teacher + (1 - beta) · student, weighted alike.
    """
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def soft_rows(student_logits: Tensor, teacher: Tensor | TopLogprobs, config: DistilConfig) -> Tensor:
    """Logits (M, V) of the student, and of the teacher or the best of what it said → (M,), times temperature²."""
    own = torch.log_softmax(_wide(student_logits) / config.temperature, dim=-1)
    if isinstance(teacher, TopLogprobs):
        if teacher.temperature != config.temperature:
            raise ConfigError(
                f"temperature is {config.temperature}, but the teacher's answers were kept at {teacher.temperature}.",
                "Use that temperature, or ask the teacher again.",
            )
        theirs = teacher.logprobs.to(own.dtype)
        if teacher.ids.shape[1] < own.shape[1]:
            theirs = torch.cat([theirs, teacher.rest.to(own.dtype).unsqueeze(1)], dim=1)  # (M, k + 1)
            own = torch.cat([own.gather(1, teacher.ids), _mass_of_rest(own, teacher.ids).unsqueeze(1)], dim=1)
        else:
            own = own.gather(1, teacher.ids)
    else:
        theirs = torch.log_softmax(teacher.to(own.dtype) / config.temperature, dim=-1)
    return divergence(own, theirs, config.beta) * config.temperature**2


def distil_loss(
    head: Head,
    hidden: Tensor,
    teacher: Tensor | TopLogprobs | tuple[Head, Tensor],
    targets: Tensor,
    config: DistilConfig,
    *,
    chunk_rows: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The student's head and hidden states (M, D) → a scalar sum over tokens, and its parts as sums.

    ``teacher`` is logits (M, V), the kept best of them, or a head and its hidden states (M, D'): then neither model's
    logits are ever whole. ``targets`` (M,) are the tokens that came next.
    """

    def score(some: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logits = head(some)
        soft = soft_rows(logits, _teacher_at(teacher, rows), config)
        hard = nn.functional.cross_entropy(_wide(logits), targets[rows], reduction="none")
        mixed = (1 - config.hard_share) * soft + config.hard_share * hard
        return mixed, torch.stack([soft.detach(), hard.detach()], dim=1)

    found, more = by_rows(score, hidden, trained_by(head), chunk_rows or rows_at_a_time(head))
    soft, hard = more.sum(dim=0)
    return found.sum(), {"divergence": soft, "next_token_loss": hard}


def hidden_loss(
    student: Tensor, teacher: Tensor, project: nn.Module | None = None, *, is_cosine: bool = False
) -> Tensor:
    """Hidden states (N, D) and (N, D') → scalar sum over tokens: their mean squared difference, or 1 - cosine.

    ``project`` brings the student's to the teacher's width where they differ (Romero et al. 2015, FitNets).
    """
    mine, theirs = _wide(student if project is None else project(student)), teacher.detach()
    if mine.shape != theirs.shape:
        raise ConfigError(
            f"The student's hidden states are {mine.shape[-1]} wide, the teacher's {theirs.shape[-1]}.",
            "Use a projection between them.",
        )
    if is_cosine:
        return (1 - nn.functional.cosine_similarity(mine, theirs.to(mine.dtype), dim=-1)).sum()
    return (mine - theirs.to(mine.dtype)).square().mean(dim=-1).sum()


def _teacher_at(teacher: Tensor | TopLogprobs | tuple[Head, Tensor], rows: slice) -> Tensor | TopLogprobs:
    if isinstance(teacher, TopLogprobs):
        return teacher.at(rows)
    if isinstance(teacher, tuple):
        with torch.no_grad():
            return teacher[0](teacher[1][rows])
    return teacher[rows]


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second) of log-probabilities (M, V) → (M,); 0 · log 0 is 0."""
    is_possible = first > -math.inf
    difference = torch.where(is_possible, first, 0.0) - torch.where(is_possible, second, 0.0)
    return (first.exp() * difference).sum(dim=-1)


def _mass_of_rest(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log of the probability of all tokens but ``ids``: (M, V) and (M, k) → (M,)."""
    if ids.shape[1] == logprobs.shape[1]:
        return logprobs.new_full(logprobs.shape[:1], -math.inf)
    return torch.logsumexp(logprobs.scatter(1, ids, -math.inf), dim=-1)


def _wide(values: Tensor) -> Tensor:
    """At least fp32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
