"""Contrastive search (Su et al. 2022, section 4.2): likely tokens that do not make the model say the same again.

Of the k likeliest tokens the best by (1 - α) · probability - α · the largest cosine of its hidden state with those
before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from danlu.core.records import Delta
from danlu.models.decoding import Rows
from danlu.models.model import Model
from danlu.models.sampling import logprob_of
from danlu.models.writing import Writing


@torch.inference_mode()
def _candidates(logits: Tensor, writing: Writing) -> tuple[Tensor, list[int]]:
    """Probabilities and ids of the top k. logits: (V,)."""
    probabilities = torch.softmax(writing.steering(logits, writing.token_ids), dim=-1)
    best = torch.topk(probabilities, min(writing.options.top_k, len(probabilities)))
    return best.values, best.indices.tolist()


@torch.inference_mode()
def _choose(probabilities: Tensor, candidates: Tensor, before: Tensor, alpha: float) -> int:
    """candidates: (k, D), before: (T, D) hidden states → rank of the chosen one."""
    cosines = nn.functional.normalize(candidates, dim=-1) @ nn.functional.normalize(before, dim=-1).t()
    return int(((1.0 - alpha) * probabilities - alpha * cosines.max(dim=-1).values).argmax())


def write_contrastive(model: Model, writing: Writing) -> Iterator[Delta]:
    """Write one answer to the end."""
    options = writing.options
    rows = Rows(model, [writing], copies=options.top_k, keeps_prompt=True)
    assert rows.prompt_hidden is not None
    before = rows.prompt_hidden.float()  # (T, D)
    while True:
        logits = rows.logits()[0].float()
        probabilities, tokens = _candidates(logits, writing)
        rows.keep([0] * len(tokens))
        hidden = rows.read([[token] for token in tokens])[:, 0].float()  # (k, D)
        chosen = _choose(probabilities, hidden, before, options.penalty_alpha)
        if options.logprobs is not None:
            writing.logprobs.append(logprob_of(logits.cpu(), tokens[chosen], options.logprobs))
        yield writing.push(tokens[chosen])
        if writing.finish_reason is not None:
            return
        rows.keep([chosen])
        before = torch.cat([before, hidden[chosen : chosen + 1]])
