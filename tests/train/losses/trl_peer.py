"""What ``trl`` makes of numbers given here: its trainers' own loss methods, called with stand-ins for the rest."""

from __future__ import annotations

import gc
import types
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it calls some of its modules experimental
    from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.gkd import GKDTrainer
    from trl.experimental.orpo import ORPOTrainer

gc.freeze()  # it makes so many objects that collections would take most of the tests' time

PROMPT = 2
"""Tokens of the prompt in every row."""


class Accelerator:
    """One process."""

    device = torch.device("cpu")
    num_processes = 1

    def gather(self, value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return value


def trainer(**changes: Any) -> Any:
    """A stand-in for ``self``."""
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **changes,
    )


def padded(tokens: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Values of tokens end to end as rows (B, longest), and the mask of those that are there."""
    rows = list(tokens.split(counts))
    values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in counts], batch_first=True)
    return values, mask


def _answers(tokens: Tensor, counts: list[int]) -> tuple[dict[str, Tensor], Any]:
    """A batch of such completions after a prompt, and the model that says so of them."""
    values, mask = padded(tokens, counts)
    before = torch.zeros(len(counts), PROMPT, dtype=torch.long)
    completion_mask = torch.cat([before, mask], dim=1)
    log_probs = torch.cat([torch.zeros(len(counts), PROMPT - 1, dtype=values.dtype), values], dim=1)
    nothing = torch.zeros_like(log_probs)
    said = types.SimpleNamespace(
        log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(log_probs, dtype=torch.bool)
    )
    inputs = {
        "input_ids": torch.ones_like(completion_mask),
        "attention_mask": torch.cat([before + 1, mask], dim=1),
        "completion_mask": completion_mask,
    }
    return inputs, lambda **_: said


def dpo(
    chosen: Tensor,
    chosen_counts: list[int],
    rejected: Tensor,
    rejected_counts: list[int],
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    losses: dict[str, float],
    beta: float,
) -> tuple[Tensor, dict[str, float]]:
    """Log-probabilities of tokens and the reference's of answers (P,) → mean loss and metrics."""
    inputs, model = _answers(torch.cat([chosen, rejected]), chosen_counts + rejected_counts)
    inputs |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    stand_in = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
    )
    loss = DPOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False)
    return loss, {name: values[-1] for name, values in stand_in._metrics["train"].items() if values}


def kto(
    tokens: Tensor,
    counts: list[int],
    labels: Tensor,
    reference: Tensor,
    mismatched: Tensor,
    mismatched_reference: Tensor,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
) -> Tensor:
    """Mean loss of answers; ``mismatched`` (B,) are log-probabilities of answers to other prompts."""
    inputs, model = _answers(tokens, counts)
    inputs |= {"label": labels, "ref_logps": reference, "ref_KL_logps": mismatched_reference}
    stand_in = trainer(
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        _compute_kl_logps=lambda *_: mismatched,
    )
    return KTOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False)


def reward(chosen: Tensor, rejected: Tensor, margin: Tensor | None, centring: float | None) -> Tensor:
    """Mean loss of rewards (P,)."""
    inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * len(chosen), 1)}
    if margin is not None:
        inputs["margin"] = margin
    said = types.SimpleNamespace(logits=torch.cat([chosen, rejected]).unsqueeze(1))
    stand_in = trainer(args=types.SimpleNamespace(center_rewards_coefficient=centring))
    return RewardTrainer.compute_loss(stand_in, lambda **_: said, inputs)


def orpo(chosen: Tensor, rejected: Tensor, nll: Tensor, beta: float) -> Tensor:
    """Mean loss of log-probabilities a token (P,)."""
    nothing = torch.zeros(1)
    stand_in = trainer(beta=beta, concatenated_forward=lambda *_: (chosen, rejected, nothing, nothing, nll))
    stand_in.odds_ratio_loss = lambda *given: ORPOTrainer.odds_ratio_loss(stand_in, *given)
    loss, _ = ORPOTrainer.get_batch_loss_metrics(stand_in, None, {})
    return loss


def cpo(chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
    """Losses (P,) of log-probabilities (P,): SimPO, and DPO with smoothed labels when these are log-ratios."""
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0}
    return CPOTrainer.cpo_loss(trainer(**(defaults | settings)), chosen, rejected)[0]


def grpo(
    tokens: Tensor,
    counts: list[int],
    advantages: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    *,
    loss_type: str,
    low: float,
    high: float,
    beta: float,
    level: str,
    longest: int,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Mean loss of completions and metrics."""
    logprobs, mask = padded(tokens, counts)
    inputs: dict[str, Any] = {
        "prompt_ids": torch.ones(len(counts), PROMPT, dtype=torch.long),
        "prompt_mask": torch.ones(len(counts), PROMPT, dtype=torch.long),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    if old is not None:
        inputs["old_per_token_logps"] = padded(old, counts)[0]
    if reference is not None:
        inputs["ref_per_token_logps"] = padded(reference, counts)[0]
    stand_in = trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        loss_type=loss_type,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=longest,
        _entropy_bonus_enabled=False,
    )
    loss = GRPOTrainer._compute_loss(stand_in, None, inputs)
    return loss, stand_in._metrics["train"]


def jsd(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """Summed divergence of logits (M, V), without temperature²."""
    return GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="sum")
