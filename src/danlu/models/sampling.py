"""How logits become tokens: the likeliest one, or a draw from what temperature and filters leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.core.records import GenerateOptions, TokenLogprob
from danlu.models.writing import Writing

_NEVER = float("-inf")


def pick_tokens(logits: Tensor, writings: Sequence[Writing]) -> list[int]:
    """Next token of each row. logits: (B, V). Each row draws from its own generator, so batches do not matter.

    Rows that asked for log-probabilities get them noted.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, writing in enumerate(writings):
        if not writing.is_plain:
            tokens[row] = _pick(logits[row].float().cpu(), writing)
    return tokens


def _pick(logits: Tensor, writing: Writing) -> int:
    steered = writing.steering(logits, writing.token_ids)
    if writing.options.temperature > 0.0:
        token = draw(steered, writing.options, writing.generator)
    else:
        token = int(steered.argmax())
    if writing.options.logprobs is not None and writing.finish_reason is None:
        writing.logprobs.append(logprob_of(logits, token, writing.options.logprobs))
    return token


def logprob_of(logits: Tensor, token: int, num_top: int) -> TokenLogprob:
    """Of a token and of the likeliest ones beside it. logits: (V,)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    best = torch.topk(logprobs, min(num_top, len(logprobs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id=token, logprob=float(logprobs[token]), top=top)


def draw(logits: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """One sample of what ``likely`` leaves. logits: (V,)."""
    return int(torch.multinomial(torch.softmax(likely(logits, options), dim=-1), 1, generator=generator))


def likely(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Logits after temperature, top-k, top-p (nucleus; Holtzman et al. 2020) and min-p (Nguyen et al. 2024), in this
    order; -inf for what is left out. (V,) → (V,)."""
    scaled = logits / max(options.temperature, 1e-4)
    if 0 < options.top_k < len(scaled):
        lowest = torch.topk(scaled, options.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < lowest, _NEVER)
    if options.top_p < 1.0:
        ordered, order = torch.softmax(scaled, dim=-1).sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= options.top_p
        # marked in the order of tokens, not of ranks: two nearly equal tokens may swap ranks from batch to batch
        scaled = scaled.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), _NEVER)
    if options.min_p > 0.0:
        probabilities = torch.softmax(scaled, dim=-1)
        scaled = scaled.masked_fill(probabilities < options.min_p * probabilities.max(), _NEVER)
    return scaled
