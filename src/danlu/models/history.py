"""The tokens before the next one, counted as they come, so that a rule about all of them costs no more for a long text.

Knows no scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class History:
    """A prompt and the answer to it so far."""

    def __init__(self, prompt_ids: Sequence[int], ngram: int = 0) -> None:
        """``ngram`` is the size of the sequences to be found again; 0 for none."""
        self._prompt, self._ngram = list(prompt_ids), ngram
        self._answer: Sequence[int] = ()
        self._start()

    def _start(self) -> None:
        self.ids = list(self._prompt)
        """Prompt and answer."""
        self._num_taken = 0
        self._known = set(self.ids)
        self._seen = _Numbers(torch.tensor(list(self._known), dtype=torch.long))
        self._answered: dict[int, int] = {}  # place of every token in _answer_tokens and _counts
        self._answer_tokens = _Numbers(torch.zeros(0, dtype=torch.long))
        self._counts = _Numbers(torch.zeros(0, dtype=torch.double))
        self._next: dict[tuple[int, ...], set[int]] = {}
        if self._ngram:
            for end in range(self._ngram, len(self.ids) + 1):
                self._follow(end)

    def follow(self, answer: Sequence[int]) -> None:
        """Take the tokens by which the answer has grown; another list than the last time is read from its start."""
        if answer is not self._answer or len(answer) < self._num_taken:
            if self._num_taken:
                self._start()
            self._answer = answer
        for token in answer[self._num_taken :]:
            self._take(token)
            place = self._answered.setdefault(token, len(self._answered))
            if place == len(self._answer_tokens):
                self._answer_tokens.add(token)
                self._counts.add(0.0)
            self._counts.values[place] += 1.0
        self._num_taken = len(answer)

    def _take(self, token: int) -> None:
        self.ids.append(token)
        if token not in self._known:
            self._known.add(token)
            self._seen.add(token)
        if self._ngram and len(self.ids) >= self._ngram:
            self._follow(len(self.ids))

    def _follow(self, end: int) -> None:
        """Note what the sequence that ends before token ``end`` goes on with."""
        self._next.setdefault(tuple(self.ids[end - self._ngram : end - 1]), set()).add(self.ids[end - 1])

    @property
    def seen(self) -> Tensor:
        """Every token of prompt and answer once: (U,)."""
        return self._seen.taken

    @property
    def answer_tokens(self) -> Tensor:
        """Every token of the answer once: (A,)."""
        return self._answer_tokens.taken

    @property
    def counts(self) -> Tensor:
        """How often each of ``answer_tokens`` stands in the answer: fp64 (A,)."""
        return self._counts.taken

    @property
    def repeated(self) -> set[int]:
        """Tokens that would end a sequence of ``ngram`` tokens that is there already."""
        size = self._ngram
        return self._next.get(tuple(self.ids[len(self.ids) - size + 1 :]), set()) if len(self.ids) >= size else set()


def repeated(ids: list[int], size: int) -> set[int]:
    """``History.repeated`` of tokens that are looked at only once: those that would end a sequence of ``size`` tokens
    that is there already."""
    if size == 1 or len(ids) < size:
        return set(ids) if size == 1 else set()
    before, starts = ids[len(ids) - size + 1 :], ids[: len(ids) - size + 1]
    found: set[int] = set()
    start = -1
    for _ in range(starts.count(before[0])):
        start = starts.index(before[0], start + 1)
        if ids[start : start + size - 1] == before:
            found.add(ids[start + size - 1])
    return found


class _Numbers:
    """A tensor that grows at its end."""

    def __init__(self, values: Tensor) -> None:
        self.values, self._count = values, len(values)

    def __len__(self) -> int:
        return self._count

    def add(self, value: float) -> None:
        if self._count == len(self.values):
            self.values = torch.cat([self.values, self.values.new_zeros(max(64, self._count))])
        self.values[self._count] = value
        self._count += 1

    @property
    def taken(self) -> Tensor:
        return self.values[: self._count]
