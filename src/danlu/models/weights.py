"""How tensors of a checkpoint become ours and back: several rows stacked, a matrix turned, a shape folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.pages import empty_pages


@dataclass(frozen=True)
class Source:
    """Where one tensor of ours comes from."""

    names: tuple[str, ...]
    """Their tensors, stacked along the first dimension in this order."""
    is_transposed: bool = False
    """Whether theirs is (in, out), as in GPT-2."""
    shape: tuple[int, ...] | None = None
    """Shape of theirs, when ours has the same numbers in the same order under another one."""

    def join(self, read: Callable[[str], Tensor], shape: torch.Size) -> Tensor:
        """Ours, as far as theirs fit: of ``shape`` when the numbers are as many."""
        part = self._ours(read(self.names[0]))
        whole = part
        if len(self.names) > 1:  # a part is let go before the next is read
            whole = empty_pages((shape.numel() // part[0].numel(), *part.shape[1:]), part.dtype)
            whole[: part.shape[0]] = part
            end = part.shape[0]
            for name in self.names[1:]:
                part = self._ours(read(name))
                whole[end : end + part.shape[0]] = part
                end += part.shape[0]
        whole = whole.contiguous()
        foldable = self.shape is not None or len(self.names) > 1
        return whole.reshape(shape) if foldable and whole.numel() == shape.numel() else whole

    def _ours(self, theirs: Tensor) -> Tensor:
        return theirs.t() if self.is_transposed else theirs

    def split(self, weight: Tensor, parts: Sequence[int]) -> dict[str, Tensor]:
        """Theirs; ``parts`` are the rows of each, repeated as often as it takes (experts)."""
        if len(self.names) == 1:
            whole = weight.t() if self.is_transposed else weight
            return {self.names[0]: whole if self.shape is None else whole.reshape(self.shape)}
        flat = weight.reshape(-1, weight.shape[-1]) if weight.dim() > 2 else weight
        sizes = list(parts) * (len(self.names) // len(parts))
        return dict(zip(self.names, flat.split(sizes), strict=True))


Weights = Mapping[str, Source]
"""Our name → where it comes from."""


def rows(*names: str) -> Source:
    """Theirs stacked along the first dimension."""
    return Source(names)


def turned(name: str) -> Source:
    """Theirs is (in, out)."""
    return Source((name,), is_transposed=True)
