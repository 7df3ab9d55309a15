"""Rows of one batch while their answers are written: what a model has read of each, and how it reads on.

Decoders and encoder-decoders look alike from here on: the latter have sources, and prompts of one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.attend import shared_prefix
from danlu.models.fastest import make_executor
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.paged import PAGE, MemoryPages, PagedCache, Segment, num_pages
from danlu.models.writing import Writing


class Rows:
    """Pages, how many tokens each row holds, and the hidden state of each row's last one."""

    def __init__(
        self, model: Model, writings: Sequence[Writing], *, copies: int = 1, keeps_prompt: bool = False
    ) -> None:
        """Reads the prompts. There is room for ``copies`` of every row."""
        prompts = [writing.prompt_ids for writing in writings]
        self._room = max(len(w.prompt_ids) + w.limit for w in writings)
        self._each = num_pages(self._room)
        num_rows = copies * len(prompts)
        sources = [writing.source_ids or [] for writing in writings]
        self._memories, memory_pages = _memory_pages(model, sources)
        self._cache = PagedCache(
            model.stack_config,
            num_rows * self._each,
            model.activation_dtype,
            model.device,
            num_slots=num_rows,
            num_memory_pages=memory_pages,
        )
        self._executor = make_executor(model, self._cache)
        if memory_pages:
            self._executor.remember(sources, [memory for memory in self._memories if memory is not None])
        self._users = [0] * self._cache.num_pages
        self._free = list(range(self._cache.num_pages))
        self._tables = [self._take(self._each) for _ in prompts]
        self._lengths = [0] * len(prompts)
        self.prompt_hidden: Tensor | None = None
        """(N, D): of all tokens of the prompts, laid end to end; only where it was asked for."""
        self.hidden = self._read_prompts(prompts, keeps_prompt, is_recurrent=model.stack_config.is_recurrent)
        """(B, D)."""

    def _read_prompts(self, prompts: Sequence[list[int]], keeps_prompt: bool, *, is_recurrent: bool) -> Tensor:
        """What all prompts begin with is read once, as far as it fills pages."""
        if keeps_prompt:
            self.prompt_hidden = self._pass(list(range(len(prompts))), prompts, everything=True)
            ends = torch.tensor([len(prompt) for prompt in prompts], device=self._cache.device).cumsum(0) - 1
            return self.prompt_hidden[ends]
        rows = list(range(len(prompts)))
        shared = 0 if is_recurrent else shared_prefix(prompts) // PAGE
        if not shared:
            return self._pass(rows, prompts)
        first = self._pass(rows[:1], prompts[:1])
        for row in rows[1:]:
            self._release(self._tables[row][:shared])
            self._tables[row][:shared] = self._share(self._tables[0][:shared])
            self._lengths[row] = shared * PAGE
        return torch.cat([first, self._pass(rows[1:], [prompt[shared * PAGE :] for prompt in prompts[1:]])])

    def _pass(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, everything: bool = False) -> Tensor:
        """Read new tokens of some rows; hidden states of each row's last one, or of all."""
        segments = [
            Segment(self._tables[row], self._lengths[row], len(new), row, self._memories[row])
            for row, new in zip(rows, ids, strict=True)
        ]
        flat = [token for new in ids for token in new]
        outs = list(range(len(flat)))
        if not everything:
            ends = torch.tensor([len(new) for new in ids]).cumsum(0) - 1
            outs = ends.tolist()
        hidden = self._executor.hidden(flat, segments, outs)
        for row, new in zip(rows, ids, strict=True):
            self._lengths[row] += len(new)
        return hidden

    def logits(self, hidden: Tensor | None = None) -> Tensor:
        """Of each row's next token, fp32 (B, V), or of what follows other hidden states (M, D)."""
        return self._executor.logits(self.hidden if hidden is None else hidden)

    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """As many new tokens for each row → their hidden states (B, T, D). A row that is full reads over its end."""
        num_new = len(ids[0])
        self._lengths = [min(length, self._room - num_new) for length in self._lengths]
        hidden = self._pass(range(len(ids)), ids, everything=True).view(len(ids), num_new, -1)
        self.hidden = hidden[:, -1]
        return hidden

    def rewind(self, num_tokens: int) -> None:
        """Forget the last tokens of every row. Recurrent stacks cannot."""
        self._lengths = [length - num_tokens for length in self._lengths]

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row ``rows[i]`` was; there may be more rows after it, or fewer. Full pages are shared."""
        for row, table in enumerate(self._tables):
            if row not in rows:
                self._release(table)
        taken: set[int] = set()
        tables: list[list[int]] = []
        copies: list[tuple[int, int]] = []
        counts: list[int] = []
        for row in rows:
            table = self._tables[row]
            if row in taken:
                table = self._fork(table, self._lengths[row], copies)
                counts += [self._lengths[row] % PAGE] * (len(copies) - len(counts))
            taken.add(row)
            tables.append(table)
        self._cache.copy_pages(copies, counts)
        self._cache.copy_slots([(row, new) for new, row in enumerate(rows) if row != new])
        self._tables = tables
        self._lengths = [self._lengths[row] for row in rows]
        self._memories = [self._memories[row] for row in rows]
        self.hidden = self.hidden[torch.tensor(rows, device=self.hidden.device)]

    def _fork(self, table: Sequence[int], length: int, copies: list[tuple[int, int]]) -> list[int]:
        full = length // PAGE
        own = self._take(self._each - full)
        if length % PAGE:
            copies.append((table[full], own[0]))
        return [*self._share(table[:full]), *own]

    def _take(self, count: int) -> list[int]:
        pages = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return self._share(pages)

    def _share(self, pages: Sequence[int]) -> list[int]:
        for page in pages:
            self._users[page] += 1
        return list(pages)

    def _release(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)


def _memory_pages(model: Model, sources: Sequence[Sequence[int]]) -> tuple[list[MemoryPages | None], int]:
    """Where the memory of each source goes, and how many pages that takes."""
    if not isinstance(model.network, EncoderDecoder):
        return [None] * len(sources), 0
    memories: list[MemoryPages | None] = []
    first = 0
    for source in sources:
        count = num_pages(len(source))
        memories.append(MemoryPages(range(first, first + count), len(source)))
        first += count
    return memories, first
