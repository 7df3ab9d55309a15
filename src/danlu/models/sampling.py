"""How logits become tokens: the likeliest one, or a draw from what temperature and filters leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danlu.core.records import GenerateOptions, TokenLogprob
from danlu.models.native.sample import Draw, Sampler, load_sampler
from danlu.models.writing import Writing

_NEVER = float("-inf")
_FIRST_SORTED = 256
"""Tokens that are sorted at first to find a nucleus."""
_FEWEST_TOKENS = 4096
"""Tokens of a vocabulary from which on the kernels are worth having."""


def pick_tokens(logits: Tensor, writings: Sequence[Writing]) -> list[int]:
    """Next token of each row. logits: (B, V). Each row draws from its own generator, so batches do not matter.

    Rows that asked for log-probabilities get them noted.
    """
    logits = logits.float()
    steered = logits
    if not all(writing.steering.is_idle for writing in writings):
        steered = torch.stack([w.steering(row, w.token_ids) for w, row in zip(writings, logits, strict=True)])
    tokens = choose(steered, writings)
    for row, writing in enumerate(writings):
        if writing.options.logprobs is not None and writing.finish_reason is None:
            writing.logprobs.append(logprob_of(logits[row], tokens[row], writing.options.logprobs))
    return tokens


def choose(logits: Tensor, writings: Sequence[Writing]) -> list[int]:
    """The likeliest token of each row, or a draw; what steers is in the logits already. logits: fp32 (B, V)."""
    drawing = [row for row, writing in enumerate(writings) if writing.options.temperature > 0.0]
    if logits.device.type != "cpu":
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        if drawing:
            drawn = choose(logits[drawing].cpu(), [writings[row] for row in drawing])
            for row, token in zip(drawing, drawn, strict=True):
                tokens[row] = token
        return tokens
    kernels = _kernels_for(logits)
    if kernels is not None:
        draws: list[Draw] = []
        for row in drawing:
            options, number = writings[row].options, _uniform(writings[row].generator)
            draws.append(Draw(row, options.temperature, options.top_k, options.top_p, options.min_p, number))
        return kernels.choose(logits, draws)
    tokens = logits.argmax(dim=-1).tolist()
    for row in drawing:
        tokens[row] = draw(logits[row], writings[row].options, _uniform(writings[row].generator))
    return tokens


def _kernels_for(logits: Tensor) -> Sampler | None:
    """The kernels where they pay: for fp32 on a CPU, and not for the few tokens of a toy."""
    pays = logits.shape[-1] >= _FEWEST_TOKENS and logits.device.type == "cpu" and logits.stride(-1) == 1
    return load_sampler() if pays and logits.dtype == torch.float32 else None


def keep_only(logits: Tensor, allowed: NDArray[np.int32]) -> None:
    """Make all other tokens impossible, in place. logits: (V,); a bit for each token that is allowed, (V/32,), the
    lowest first. Tokens beyond the last bit are not allowed."""
    kernels = _kernels_for(logits)
    if kernels is not None:
        kernels.forbid(logits, allowed)
        return
    is_allowed = np.unpackbits(allowed.view(np.uint8), count=len(logits), bitorder="little")  # with zeros behind
    logits.masked_fill_(torch.from_numpy(is_allowed == 0).to(logits.device), _NEVER)


def _uniform(generator: torch.Generator) -> float:
    """One random number a draw, so that few seeds are ever repeated."""
    return torch.rand(1, generator=generator, dtype=torch.float64).item()


def logprob_of(logits: Tensor, token: int, num_top: int) -> TokenLogprob:
    """Of a token and of the likeliest ones beside it. logits: fp32 (V,)."""
    kernels = _kernels_for(logits)
    if kernels is not None:
        log_sum, best = kernels.note(logits, num_top)
        top = tuple((place, value - log_sum) for place, value in best)
        return TokenLogprob(token_id=token, logprob=float(logits[token]) - log_sum, top=top)
    logprobs = torch.log_softmax(logits.cpu(), dim=-1)
    found = torch.topk(logprobs, min(num_top, len(logprobs)))
    top = tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))
    return TokenLogprob(token_id=token, logprob=float(logprobs[token]), top=top)


def draw(logits: Tensor, options: GenerateOptions, uniform: float) -> int:
    """One sample of what ``likely`` leaves, by a random number from 0 to 1: the token in which that share of the
    probability lies, in the order of ids. logits: (V,)."""
    shares = torch.softmax(likely(logits, options), dim=-1).cumsum(0, dtype=torch.float64)
    return int(torch.searchsorted(shares, uniform * shares[-1:], right=True).clamp_(max=len(shares) - 1))


def is_filtered(options: GenerateOptions) -> bool:
    """Whether tokens are left out of a draw for how likely they are beside the others."""
    return options.temperature > 0.0 and (options.top_k > 0 or options.top_p < 1.0 or options.min_p > 0.0)


def likely(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Logits after temperature, top-k, top-p (nucleus; Holtzman et al. 2020) and min-p (Nguyen et al. 2024), in this
    order; -inf for what is left out. (V,) → (V,)."""
    scaled = logits / max(options.temperature, 1e-4)
    if 0 < options.top_k < len(scaled):
        lowest = torch.topk(scaled, options.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < lowest, _NEVER)
    if options.top_p < 1.0:
        scaled = scaled.masked_fill(scaled < _least_of_nucleus(scaled, options.top_p), _NEVER)
    if options.min_p > 0.0:
        scaled = scaled.masked_fill(scaled < scaled.max() + math.log(options.min_p), _NEVER)
    return scaled


def _least_of_nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """The smallest logit of the fewest tokens that have ``top_p`` of the probability. Most often a few hundred tokens
    do, so that the rest need not be sorted."""
    total = torch.logsumexp(scaled, dim=-1)
    count = min(_FIRST_SORTED, len(scaled))
    while True:
        best = torch.topk(scaled, count).values
        before = torch.cumsum(torch.exp(best - total), dim=0)
        inside = int((before < top_p).sum())  # tokens that do not reach it yet; one more does
        if inside < count or count == len(scaled):
            return best[min(inside, count - 1)]
        count = min(16 * count, len(scaled))
