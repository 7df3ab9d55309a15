"""Hidden words found again: what masked language models are asked. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from danlu.core.errors import ModelError, RequestError
from danlu.models.encode import hidden_states, text_limit
from danlu.models.heads.lm import LMHead
from danlu.models.model import Model


@dataclass(frozen=True, slots=True)
class Filling:
    """One word that may stand in a gap."""

    text: str
    """The token as text."""
    token_id: int
    """Its id."""
    probability: float
    """How likely it is among all tokens."""


def fill_mask(model: Model, text: str, *, top: int = 5) -> list[list[Filling]]:
    """For each gap, the most likely tokens. A gap is written as the tokenizer's own mask, "[MASK]" or "<mask>".

    Raises ModelError when the model is no masked language model, RequestError when there is no gap.
    """
    head = model.network.head
    tokenizer = model.chat.tokenizer
    mask_id = tokenizer.mask_id
    if not isinstance(head, LMHead) or model.stack_config.is_causal or mask_id is None:
        raise ModelError("This model fills no gaps.", "Use a …ForMaskedLM model with a mask token.")
    mask = tokenizer.roles["mask_token"]
    if mask not in text:
        raise RequestError(f"The text has no {mask}.", f"Write {mask} where a word is to be found.")
    ids = _with_gaps(model, text.split(mask), mask_id)
    gaps = [place for place, index in enumerate(ids) if index == mask_id]
    with torch.no_grad():
        hidden = hidden_states(model, torch.tensor([ids], device=model.device))[0]
        best = head(hidden[gaps]).float().softmax(dim=-1).topk(top)
    return [
        [Filling(tokenizer.decode([index]).strip(), index, share) for index, share in zip(*found, strict=True)]
        for found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _with_gaps(model: Model, parts: Sequence[str], mask_id: int) -> list[int]:
    """Ids of parts with a mask between them, in the model's frame; parts are read as if each began behind the mask."""
    tokenizer = model.chat.tokenizer
    token = tokenizer.backend.get_added_tokens_decoder()[mask_id]
    ids: list[int] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        text = part.rstrip() if token.lstrip and not last else part
        text = text.lstrip() if token.rstrip and number else text
        again = number == 0 or tokenizer.prefix == "always"
        ids += tokenizer.encode(text) if again else tokenizer.encode_rest(text)
        ids += [] if last else [mask_id]
    sample = tokenizer.encode("a")
    frame, _ = tokenizer.encode_with_specials("a")
    start = next(i for i in range(len(frame)) if frame[i : i + len(sample)] == sample)
    ids = [*frame[:start], *ids, *frame[start + len(sample) :]]
    if len(ids) > text_limit(model):
        raise RequestError(f"The text has {len(ids)} tokens, the model reads {text_limit(model)}.", "Shorten it.")
    return ids
