"""Attention for encoding on a CPU: rows of like length side by side, long rows one by one.

The result is that of ``PackedAttend``; what differs is that no row is padded to the longest of the whole batch and that
the scores of one product stay in the processor's cache. Knows no weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.attend import PackedAttend
from danlu.models.product import Rule

_ALONE = 64
"""Rows of this many tokens are worth a product of their own."""
_LEAST_SHARE = 0.75
"""Of the longest row of a group, for a row to join it: the rest is padding."""
_GROUP_TOKENS = 512
"""Most tokens of a group, so that its scores stay in the cache."""


class GroupedAttend(PackedAttend):
    """Rows laid end to end, best the longest first; inference only."""

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        super().__init__(lengths, device)
        groups = [[lengths[number] for number in group] for group in groups_of(lengths)]
        self._groups = [PackedAttend(group, device) for group in groups]
        self._sizes = [sum(group) for group in groups]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        if len(self._groups) == 1:
            return super().__call__(layer, q, k, v, rule, bias)
        mixed = torch.empty_like(q)
        stops = list(itertools.accumulate(self._sizes))
        for attend, size, stop in zip(self._groups, self._sizes, stops, strict=True):
            place = slice(stop - size, stop)
            longest = attend.layout.longest
            part = None if bias is None else bias[:, :longest, :longest]
            mixed[place] = attend(layer, q[place], k[place], v[place], rule, part)
        return mixed


def groups_of(lengths: Sequence[int]) -> list[range]:
    """Neighbouring rows whose products run together."""
    groups: list[range] = []
    for number, length in enumerate(lengths):
        group = groups[-1] if groups else range(0)
        longest = max((lengths[i] for i in group), default=0)
        fits = len(group) > 0 and (len(group) + 1) * max(longest, length) <= _GROUP_TOKENS
        if fits and max(longest, length) < _ALONE and min(longest, length) >= _LEAST_SHARE * max(longest, length):
            groups[-1] = range(group.start, number + 1)
        else:
            groups.append(range(number, number + 1))
    return groups
