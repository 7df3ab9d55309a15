"""A pass over pages: new tokens of many rows in, what the model says after some of them out.

Everything that writes text stands on this: the reference sampler and the engine. Knows no requests and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from danlu.models.adapted import AdaptedLinears
from danlu.models.adapters import Factors
from danlu.models.attend import Memory
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder, Network
from danlu.models.paged import MemoryPages, PagedAttend, PagedCache, Segment


class Executor(Protocol):
    """One model and its pages. Not thread-safe: one thread owns it."""

    cache: PagedCache

    def hidden(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """Read new tokens, laid end to end as ``segments`` say; their keys and values go into the segments' pages.

        Returns hidden states after the last norm of the tokens with the numbers ``outs``: (M, D).
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) → fp32 (M, V)."""
        ...

    def run(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """``hidden`` and ``logits`` in one: fp32 (M, V). The result may be overwritten by the next call."""
        ...

    def remember(self, sources: Sequence[Sequence[int]], memories: Sequence[MemoryPages]) -> None:
        """Encode sources and put what the decoder looks back at into the pages of ``memories``, before the next pass
        needs it."""
        ...

    def put_adapter(self, adapter: int, factors: Factors) -> None:
        """Set what segments with this ``adapter``, 1 or more, add from the next pass on; no factors empty it. Factors
        are of linears of the blocks, so ``logits`` is the same for all."""
        ...


class TorchExecutor:
    """The plain way: torch operations, any family, any device."""

    def __init__(self, model: Model, cache: PagedCache) -> None:
        self.cache = cache
        self._network: Network = model.network
        self._adapted = AdaptedLinears(model.network, model.activation_dtype)
        self._remembered: list[tuple[Memory, Sequence[MemoryPages]]] = []  # what the next pass keeps keys of

    @torch.inference_mode()
    def hidden(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """See ``Executor.hidden``."""
        device = self.cache.device
        positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in segments]).to(device)
        tokens = torch.tensor(ids, dtype=torch.long, device=device)
        with self._adapted.used([s.adapter for s in segments], [s.count for s in segments]):
            hidden = self._network(tokens, positions, PagedAttend(self.cache, segments, self._remembered))
        self._remembered = []
        return hidden[torch.tensor(outs, dtype=torch.long, device=device)]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Executor.logits``."""
        return self._network.logits(hidden).float()

    def run(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """See ``Executor.run``."""
        return self.logits(self.hidden(ids, segments, outs))

    @torch.inference_mode()
    def remember(self, sources: Sequence[Sequence[int]], memories: Sequence[MemoryPages]) -> None:
        """See ``Executor.remember``. Keys and values are made in the next pass: each layer makes its own."""
        assert isinstance(self._network, EncoderDecoder)
        ids = torch.tensor([i for source in sources for i in source], dtype=torch.long, device=self.cache.device)
        memory = self._network.encode(ids, [len(source) for source in sources])
        self._remembered.append((memory, memories))

    def put_adapter(self, adapter: int, factors: Factors) -> None:
        """See ``Executor.put_adapter``."""
        self._adapted.put(adapter, factors)
