"""Rows of one batch while their answers are written: what a model has read of each, and how it reads on.

Decoders and encoder-decoders look alike from here on: the latter have sources, and prompts of one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.attend import DecodeAttend, Memory, PrefillAttend, row_positions, shared_prefix
from danlu.models.cache import KVCache
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder, Network
from danlu.models.writing import Writing


def read_prompts(
    network: Network, prompts: Sequence[list[int]], cache: KVCache, first: int, memory: Memory | None = None
) -> Tensor:
    """Read prompts into rows ``first``… of a cache, in one packed pass; what they all begin with is read once.

    Returns the hidden state of each prompt's last token: (B, D).
    """
    hidden, ends = _read(network, prompts, cache, first, memory)
    return hidden[ends]


def _read(
    network: Network, prompts: Sequence[list[int]], cache: KVCache, first: int, memory: Memory | None
) -> tuple[Tensor, Tensor]:
    """Hidden states of all tokens read, (N, D), and where each prompt ends, (B,)."""
    shared = shared_prefix(prompts)
    lengths = [len(prompt) - shared for prompt in prompts]
    ids = torch.tensor([*prompts[0][:shared], *(i for p in prompts for i in p[shared:])], device=cache.device)
    positions = row_positions(lengths, shared).to(cache.device)
    hidden = network(ids, positions, PrefillAttend(cache, first, lengths, shared, memory))
    return hidden, torch.tensor(lengths, device=cache.device).cumsum(0) + (shared - 1)


class Rows:
    """A cache, how many tokens each of its rows holds, and the hidden state of each row's last one."""

    @torch.inference_mode()
    def __init__(self, model: Model, writings: Sequence[Writing], *, copies: int = 1) -> None:
        """Reads the prompts. There is room for ``copies`` of every row."""
        network, prompts = model.network, [writing.prompt_ids for writing in writings]
        room = max(len(w.prompt_ids) + w.limit for w in writings)
        memory = _read_sources(model, writings)
        longest = 0 if memory is None else max(memory.lengths)
        self._network = network
        self._device = model.device
        self._cache = KVCache(
            network.config.stack, copies * len(prompts), room, model.activation_dtype, model.device, longest
        )  # fmt: skip
        self.prompt_hidden, ends = _read(network, prompts, self._cache, 0, memory)
        """(N, D): of all tokens of the prompts, laid end to end."""
        self.hidden = self.prompt_hidden[ends]
        """(B, D)."""
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)

    @torch.inference_mode()
    def logits(self, hidden: Tensor | None = None) -> Tensor:
        """Of each row's next token, (B, V), or of what follows other hidden states (M, D)."""
        return self._network.logits(self.hidden if hidden is None else hidden)

    @torch.inference_mode()
    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """As many new tokens for each row → their hidden states (B, T, D). A row that is full reads over its end."""
        tokens = torch.tensor(ids, device=self._device)  # (B, T)
        num_new = tokens.shape[1]
        lengths = self._lengths.clamp(max=self._cache.num_tokens - num_new)
        places = lengths.unsqueeze(1) + torch.arange(num_new, device=self._device)
        attend = DecodeAttend(self._cache, lengths, num_new)
        hidden = self._network(tokens.flatten(), places.flatten(), attend).view(*tokens.shape, -1)
        self._lengths = lengths + num_new
        self.hidden = hidden[:, -1]
        return hidden

    def rewind(self, num_tokens: int) -> None:
        """Forget the last tokens of every row. Recurrent stacks cannot."""
        self._lengths = self._lengths - num_tokens

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row ``rows[i]`` was; there may be more rows after it, or fewer."""
        index = torch.tensor(rows, device=self._device)
        self._cache.reorder(index)
        self._lengths, self.hidden = self._lengths[index], self.hidden[index]


def _read_sources(model: Model, writings: Sequence[Writing]) -> Memory | None:
    if not isinstance(model.network, EncoderDecoder):
        return None
    sources = [writing.source_ids or [] for writing in writings]
    ids = torch.tensor([i for source in sources for i in source], device=model.device)
    return model.network.encode(ids, [len(source) for source in sources])
