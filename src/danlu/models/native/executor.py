"""The executor of models/executor.py in C: new tokens of many rows in, hidden states or logits out, over pages.

Embeddings, heads with a transform and encoders that the kernels do not know stay with torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.adapters import Factors
from danlu.models.heads.lm import LMHead
from danlu.models.model import Model
from danlu.models.native.kernels import KINDS, Kernels, load_kernels
from danlu.models.native.passes import Passes, Pools, Span
from danlu.models.native.program import Unsupported, write_program
from danlu.models.native.programs import program_of
from danlu.models.native.tower import NativeTower, native_tower
from danlu.models.network import EncoderDecoder, Network
from danlu.models.paged import MemoryPages, PagedCache, Segment

_LOG = logging.getLogger(__name__)


class NativeExecutor:
    """One model and its pages; see ``models.executor.Executor``. Not thread-safe: one thread owns it."""

    def __init__(
        self, kernels: Kernels, model: Model, cache: PagedCache, num_threads: int, *, owns_network: bool = False
    ) -> None:
        """Raises Unsupported for a network that the kernels do not know. With ``owns_network`` torch's copies of the
        weights that are packed are let go of, so that nothing but this can run it."""
        if cache.dtype not in KINDS or cache.device.type != "cpu":
            raise Unsupported(f"its pages hold {cache.dtype} on {cache.device.type}")
        self.cache = cache
        self._network: Network = model.network
        head = model.network.head
        knows_head = isinstance(head, LMHead) and head.transform is None
        known_head = head if knows_head else None
        if owns_network:
            program = write_program(kernels, model.network, known_head, releases=True)
        else:
            program = program_of(kernels, model.network, known_head)
        pools = Pools(
            cache.keys, cache.values, cache.memory_keys, cache.memory_values, cache.num_pages, cache.num_memory_pages,
            cache.key_scales, cache.value_scales, cache.memory_key_scales, cache.memory_value_scales,
        )  # fmt: skip
        self._passes = Passes(kernels, program, model.network.stack, pools, num_threads)
        self._remembering: Passes | None = None
        if program.memory is not None:
            memory = Pools(
                cache.memory_keys, cache.memory_values, [], [], cache.num_memory_pages, 0, cache.memory_key_scales,
                cache.memory_value_scales,
            )  # fmt: skip
            self._remembering = Passes(kernels, program.memory, model.network.stack, memory, num_threads)
        self._encoder: NativeTower | None = None
        if isinstance(model.network, EncoderDecoder):
            self._encoder = native_tower(
                model.network.encoder, model.activation_dtype, num_threads=num_threads, releases=owns_network
            )  # fmt: skip

    @property
    def num_threads(self) -> int:
        """Threads that work, the caller's included."""
        return self._passes.num_threads

    def use_threads(self, num_threads: int) -> None:
        """Run the next passes with so many threads."""
        for passes in (self._passes, self._remembering, self._encoder):
            if passes is not None:
                passes.use_threads(num_threads)

    @property
    def few_threads(self) -> int:
        """Threads that work in passes of few tokens."""
        return self._passes.few_threads

    def use_few_threads(self, num_threads: int) -> None:
        """Run the next passes of few tokens with so many threads, at most as many as there are."""
        self._passes.few_threads = num_threads

    def put_adapter(self, adapter: int, factors: Factors) -> None:
        """What segments with this ``adapter``, 1 or more, add to products from the next pass on; nothing to empty it.
        ``logits`` of hidden states reads no adapter: one that changes the head needs ``run``."""
        assert adapter > 0, "0 stands for no adapter"
        self._passes.adapters.put(adapter - 1, factors)

    def close(self) -> None:
        """End the threads. Also done when this object goes."""
        for passes in (self._passes, self._remembering, self._encoder):
            if passes is not None:
                passes.close()

    @torch.inference_mode()
    def hidden(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """See ``Executor.hidden``; fp32."""
        return self._pass(ids, segments, outs, with_head=False).clone()

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Executor.logits``."""
        if self._passes.program.has_head and hidden.shape[0]:
            return self._passes.run_head(hidden)
        return self._network.logits(hidden.to(self._network_dtype)).float()

    @torch.inference_mode()
    def run(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """See ``Executor.run``."""
        if self._passes.program.has_head:
            return self._pass(ids, segments, outs, with_head=True)
        return self.logits(self.hidden(ids, segments, outs))

    @torch.inference_mode()
    def remember(self, sources: Sequence[Sequence[int]], memories: Sequence[MemoryPages]) -> None:
        """See ``Executor.remember``."""
        network = self._network
        assert isinstance(network, EncoderDecoder)
        assert self._remembering is not None, "only a decoder with cross-attention has a memory"
        ids, lengths = [i for source in sources for i in source], [len(source) for source in sources]
        if self._encoder is None:
            hidden = network.encode(torch.tensor(ids), lengths).hidden
        else:
            hidden = self._encoder.encode(ids, lengths)
        spans = [Span(pages.table, 0, length) for pages, length in zip(memories, lengths, strict=True)]
        self._remembering.run(hidden, spans, (), with_head=False)

    @property
    def _network_dtype(self) -> torch.dtype:
        """Number type of hidden states in torch."""
        return self._network.embedding(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)).dtype

    def _pass(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int], *, with_head: bool) -> Tensor:
        spans = [Span(s.table, s.start, s.count, _memory(s), s.adapter - 1) for s in segments]
        positions = [place for s in segments for place in range(s.start, s.start + s.count)]
        x = self._network.embedding(torch.tensor(ids), torch.tensor(positions))
        return self._passes.run(x, spans, outs, with_head=with_head)


def _memory(segment: Segment) -> tuple[Sequence[int], int] | None:
    return None if segment.memory is None else (segment.memory.table, segment.memory.length)


def native_executor(
    model: Model, cache: PagedCache, *, num_threads: int, owns_network: bool = False
) -> NativeExecutor | None:
    """The executor in C, or None where torch has to do the work; why is said in the log."""
    kernels = load_kernels()
    if kernels is None:
        return None
    try:
        return NativeExecutor(kernels, model, cache, num_threads, owns_network=owns_network)
    except Unsupported as reason:
        _LOG.info("the native kernels are not used for this model: %s", reason)
        return None
