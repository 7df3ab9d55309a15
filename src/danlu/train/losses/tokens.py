"""What a head says of tokens, a few rows at a time: logits are the largest tensor of training and are never kept whole.

Each row's result depends on its own hidden state alone, so rows can be done in chunks, exactly. With a frozen head
(LoRA) derivatives are taken in the forward pass and nothing is computed twice; a head that trains is run again in the
backward pass, and its gradient is added up in fp32 whatever its own type. Knows no batch layout: see completions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Head = Callable[[Tensor], Tensor]
"""(m, D) → (m, V), row by row."""
ScoreRows = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Hidden states (m, D) of these rows → what is differentiated (m,), and more numbers that are not (m, C)."""

CHUNK_NUMBERS = 2**24
"""Logits made at a time: 64 MiB in fp32."""


@dataclass(frozen=True)
class TokenScores:
    """What a model said of M tokens."""

    logprobs: Tensor
    """(M,) log-probability in nats of each token, fp32 or wider."""
    entropies: Tensor
    """(M,) entropy in nats of each prediction; not differentiable."""
    is_first: Tensor
    """(M,) 1.0 where the token was the likeliest."""


def token_scores(
    head: Head, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_rows: int | None = None
) -> TokenScores:
    """Log-probabilities of ``targets`` (M,) at hidden states (M, D), logits divided by ``temperature``.

    Peak memory is one chunk of logits, by default of ``CHUNK_NUMBERS``.
    """

    def score(some: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logits = _wide(head(some)) / temperature
        everything = torch.log_softmax(logits, dim=-1)  # (m, V)
        chosen = everything.gather(1, targets[rows, None]).squeeze(1)
        with torch.no_grad():
            entropies = torch.special.entr(everything.exp()).sum(dim=-1)
            is_first = (chosen >= everything.amax(dim=-1)).to(entropies.dtype)
        return chosen, torch.stack([entropies, is_first], dim=1)

    found, more = by_rows(score, hidden, trained_by(head), chunk_rows or rows_at_a_time(head))
    return TokenScores(found, more[:, 0], more[:, 1])


def row_sums(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Values of tokens laid end to end (M,), ``counts`` of them a row → sums (B,)."""
    numbers = torch.tensor(counts, device=values.device)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=values.device), numbers)
    return values.new_zeros(len(counts)).index_add(0, rows, values)


def row_means(values: Tensor, counts: Sequence[int]) -> Tensor:
    """As ``row_sums``, divided by the number of tokens; 0 for rows without any."""
    return row_sums(values, counts) / torch.tensor(counts, device=values.device).clamp(min=1)


def of_rows(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The inverse layout: values of rows (B,) → at each of their tokens (M,)."""
    return values.repeat_interleave(torch.tensor(counts, device=values.device))


def rows_at_a_time(head: Head) -> int:
    """Rows whose logits have about ``CHUNK_NUMBERS`` numbers."""
    weights = [p for p in head.parameters() if p.dim() == 2] if isinstance(head, nn.Module) else []
    largest = max((weight.shape[0] for weight in weights), default=2**12)
    return max(16, CHUNK_NUMBERS // largest)


def trained_by(head: object) -> list[Tensor]:
    """The parameters of a head that ask for a gradient; none of a plain function."""
    return [p for p in head.parameters() if p.requires_grad] if isinstance(head, nn.Module) else []


def by_rows(score: ScoreRows, hidden: Tensor, parameters: Sequence[Tensor], chunk_rows: int) -> tuple[Tensor, Tensor]:
    """``score`` of all rows, ``chunk_rows`` at a time: hidden (M, D) → (M,) and (M, C).

    ``parameters`` are what ``score`` reads and trains besides ``hidden``. The second result has no gradient.
    """
    assert chunk_rows > 0
    takes_slopes = torch.is_grad_enabled() and hidden.requires_grad and not parameters
    return _ByRows.apply(score, chunk_rows, takes_slopes, hidden, *parameters)  # pyright: ignore


class _ByRows(torch.autograd.Function):
    """First derivatives of a function that works row by row, without keeping what is between."""

    @staticmethod
    def forward(
        ctx: Any, score: ScoreRows, chunk_rows: int, takes_slopes: bool, hidden: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.score, ctx.chunk_rows, ctx.has_slopes, ctx.parameters = score, chunk_rows, takes_slopes, parameters
        found: list[Tensor] = []
        more: list[Tensor] = []
        slopes: list[Tensor] = []
        for rows in _slices(hidden, chunk_rows):
            if takes_slopes:
                with torch.enable_grad():
                    some = hidden[rows].detach().requires_grad_()
                    result, extra = score(some, rows)
                    slopes += torch.autograd.grad(result.sum(), some)
            else:
                result, extra = score(hidden[rows], rows)
            found.append(result.detach())
            more.append(extra.detach())
        ctx.save_for_backward(torch.cat(slopes) if takes_slopes else hidden)
        others = torch.cat(more)
        ctx.mark_non_differentiable(others)
        return torch.cat(found), others

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (saved,), gradient = ctx.saved_tensors, gradients[0]
        if ctx.has_slopes:
            return None, None, None, saved * gradient.unsqueeze(1).to(saved.dtype)
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in ctx.parameters]
        slopes: list[Tensor] = []
        for rows in _slices(saved, ctx.chunk_rows):
            with torch.enable_grad():
                some = saved[rows].detach().requires_grad_()
                result, _ = ctx.score(some, rows)
                slope, *shares = torch.autograd.grad(result, [some, *ctx.parameters], gradient[rows], allow_unused=True)
            slopes.append(slope)
            for total, share in zip(totals, shares, strict=True):
                if share is not None:
                    total += share
        shares = [total.to(p.dtype) for total, p in zip(totals, ctx.parameters, strict=True)]
        return None, None, None, torch.cat(slopes), *shares


def _slices(hidden: Tensor, size: int) -> list[slice]:
    """At least one, so that an empty batch has results of the right shape."""
    return [slice(start, start + size) for start in range(0, max(1, hidden.shape[0]), size)]


def _wide(logits: Tensor) -> Tensor:
    """At least fp32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
