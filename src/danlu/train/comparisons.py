"""Methods that learn from compared answers, one config each: DPO, IPO, ORPO, SimPO, KTO.

Each turns log-probabilities of answers into a summed loss and rewards for the curve; the formulas and their papers are
in losses/preference.py. Knows no rows, no network and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.train.losses.preference import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    nll_loss,
    orpo_loss,
    preference_parts,
    simpo_loss,
)


@dataclass(frozen=True)
class Said:
    """What the policy said of B answers, and its reference."""

    sums: Tensor
    """(B,) log-probability of each."""
    counts: Tensor
    """(B,) supervised tokens of each."""
    reference: Tensor | None
    """(B,) the reference's sums, where there is one."""

    @property
    def means(self) -> Tensor:
        """(B,) log-probability a token."""
        return self.sums / self.counts

    @property
    def ratios(self) -> Tensor:
        """(B,) log of policy over reference."""
        assert self.reference is not None
        return self.sums - self.reference

    def at(self, rows: slice) -> Said:
        """Some of them."""
        return Said(self.sums[rows], self.counts[rows], None if self.reference is None else self.reference[rows])


Found = tuple[Tensor, dict[str, Tensor]]
"""A summed loss and sums for the curve."""


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = 0.1
    """How much a log-ratio is worth; small lets the policy go further from the reference."""
    label_smoothing: float = 0.0
    """Share of pairs believed to be labelled the wrong way round."""
    reference_free: bool = False
    """Log-probabilities instead of log-ratios: no reference is needed."""
    per_token: bool = False
    """Divide by the tokens of each answer, so that long ones weigh no more."""
    nll_weight: float = 0.0
    """Weight of the chosen answer's own loss a token (RPO, Pang et al. 2024); above 0 it stays likely."""

    def __post_init__(self) -> None:
        _check_positive(self.beta, "dpo.beta")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"dpo.label_smoothing is {self.label_smoothing}.", "Use 0 or more, and less than 0.5.")
        if self.nll_weight < 0:
            raise ConfigError(f"dpo.nll_weight is {self.nll_weight}.", "Use 0 or more.")

    @property
    def needs_reference(self) -> bool:
        """Whether log-ratios are read."""
        return not self.reference_free

    def __call__(self, chosen: Said, rejected: Said) -> Found:
        """P pairs → sums over them."""
        first, second = (one.sums if self.reference_free else one.ratios for one in (chosen, rejected))
        if self.per_token:
            first, second = first / chosen.counts, second / rejected.counts
        loss = dpo_loss(first, second, beta=self.beta, label_smoothing=self.label_smoothing)
        if self.nll_weight:
            loss = loss + self.nll_weight * nll_loss(chosen.means)
        return loss, preference_parts(self.beta * first, self.beta * second)


@dataclass(frozen=True, kw_only=True)
class Ipo:
    """Identity preference optimisation (Azar et al. 2023): pulls the margin to a value instead of to infinity."""

    beta: float = 0.1
    """The margin a token goes to 1 / (2 beta)."""
    needs_reference = True

    def __post_init__(self) -> None:
        _check_positive(self.beta, "ipo.beta")

    def __call__(self, chosen: Said, rejected: Said) -> Found:
        """P pairs → sums over them."""
        first, second = chosen.ratios / chosen.counts, rejected.ratios / rejected.counts
        return ipo_loss(first, second, beta=self.beta), preference_parts(self.beta * first, self.beta * second)


@dataclass(frozen=True, kw_only=True)
class Orpo:
    """Odds-ratio preference optimisation (Hong et al. 2024): fine-tuning and preference at once, no reference."""

    beta: float = 0.1
    """Weight of the odds ratio beside the chosen answer's own loss."""
    needs_reference = False

    def __post_init__(self) -> None:
        _check_positive(self.beta, "orpo.beta")

    def __call__(self, chosen: Said, rejected: Said) -> Found:
        """P pairs → sums over them."""
        first, second = chosen.means, rejected.means
        return orpo_loss(first, second, beta=self.beta), preference_parts(self.beta * first, self.beta * second)


@dataclass(frozen=True, kw_only=True)
class Simpo:
    """Simple preference optimisation (Meng et al. 2024): log-probabilities a token with a margin, no reference."""

    beta: float = 2.0
    """How much a log-probability a token is worth."""
    margin: float = 1.0
    """By how much the chosen answer's reward shall be above the other's."""
    needs_reference = False

    def __post_init__(self) -> None:
        _check_positive(self.beta, "simpo.beta")

    def __call__(self, chosen: Said, rejected: Said) -> Found:
        """P pairs → sums over them."""
        first, second = chosen.means, rejected.means
        loss = simpo_loss(first, second, beta=self.beta, margin=self.margin)
        return loss, preference_parts(self.beta * first, self.beta * second)


@dataclass(frozen=True, kw_only=True)
class Kto:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): answers that were liked or not, without pairs."""

    beta: float = 0.1
    """How much a log-ratio is worth."""
    desirable_weight: float = 1.0
    """Weight of liked answers; raise it where they are few."""
    undesirable_weight: float = 1.0
    """Weight of the others."""
    needs_reference = True

    def __post_init__(self) -> None:
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            _check_positive(getattr(self, name), f"kto.{name}")

    def __call__(self, answers: Said, is_desirable: Tensor, baseline: Tensor) -> Found:
        """B answers, liked or not (B,) bool → sums over them. ``baseline`` is the drift of the whole step, a scalar."""
        loss = kto_loss(
            answers.ratios,
            is_desirable,
            baseline,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        with torch.no_grad():
            margins = self.beta * (answers.ratios - baseline)
            signed = torch.where(is_desirable, margins, -margins)
            parts = {
                "rewards/margin": signed.sum(),
                "rewards/accuracy": (signed > 0).to(margins.dtype).sum(),
                "kl": baseline * len(margins),
            }
        return loss, parts


PairMethod = Dpo | Ipo | Orpo | Simpo
Method = PairMethod | Kto


def _check_positive(value: float, name: str) -> None:
    if value <= 0:
        raise ConfigError(f"{name} is {value}.", "Use a positive number such as 0.1.")
