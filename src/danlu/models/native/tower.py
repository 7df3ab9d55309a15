"""Whole rows through a tower at once: encoders, and decoders that are asked for hidden states. Nothing is kept of them.

Keys and values of the pass go into pages of its own, the same ones for every layer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.native.kernels import Kernels, load_kernels
from danlu.models.native.passes import Passes, Pools, Span
from danlu.models.native.program import Unsupported, write_program
from danlu.models.native.structs import PAGE
from danlu.models.network import Tower

_LOG = logging.getLogger(__name__)


class NativeTower:
    """One tower. Not thread-safe: one thread owns it."""

    def __init__(
        self, kernels: Kernels, tower: Tower, dtype: torch.dtype, num_threads: int, *, releases: bool = False
    ) -> None:
        """``dtype`` is that of keys and values, fp32 or bf16; ``releases`` lets go of torch's copies of the weights, so
        that nothing but this can run the tower. Raises Unsupported."""
        self._embedding, self._stack = tower.embedding, tower.stack  # not the tower: who has one may wait for its end
        self._kernels = kernels
        self._dtype = dtype
        self._num_pages = 0
        self._program = write_program(kernels, tower, shared_pages=True, releases=releases)
        self._threads = num_threads
        self._passes = self._with_pages(64)

    def _with_pages(self, num_pages: int) -> Passes:
        size = self._program.most_kv_width * PAGE
        keys, values = (torch.zeros(num_pages, size, dtype=self._dtype) for _ in range(2))
        self._num_pages = num_pages
        pools = Pools([keys], [values], [], [], num_pages, 0)
        return Passes(self._kernels, self._program, self._stack, pools, self._threads)

    @property
    def num_threads(self) -> int:
        """Threads that work, the caller's included."""
        return self._passes.num_threads

    def use_threads(self, num_threads: int) -> None:
        """Run the next passes with so many threads."""
        self._threads = num_threads
        self._passes.use_threads(num_threads)

    def close(self) -> None:
        """End the threads. Also done when this object goes."""
        self._passes.close()

    @torch.inference_mode()
    def encode(
        self, ids: Sequence[int] | Tensor, lengths: Sequence[int], *, types: Tensor | None = None,
        outs: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """ids: (N,), rows of ``lengths`` laid end to end; types: (N,) → hidden states after the last norm, fp32 (N, D),
        or (M, D) of the tokens with the numbers ``outs``."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        extra = {} if types is None else {"types": types}
        x = self._embedding(torch.as_tensor(ids, dtype=torch.long), positions, **extra)
        return self.encode_embedded(x, lengths, outs=outs)

    @torch.inference_mode()
    def encode_embedded(self, x: Tensor, lengths: Sequence[int], *, outs: Sequence[int] | None = None) -> Tensor:
        """The same for embeddings (N, D): of images, for example."""
        spans: list[Span] = []
        page = 0
        for length in lengths:
            count = -(-length // PAGE)
            spans.append(Span(range(page, page + count), 0, length))
            page += count
        if page > self._num_pages:
            self._passes.close()
            self._passes = self._with_pages(1 << (page - 1).bit_length())
        wanted = range(x.shape[0]) if outs is None else outs
        return self._passes.run(x, spans, wanted, with_head=False).clone()


def native_tower(
    tower: Tower, dtype: torch.dtype = torch.float32, *, num_threads: int = 1, releases: bool = False
) -> NativeTower | None:
    """The tower in C, or None where torch has to do the work; why is said in the log."""
    kernels = load_kernels()
    if kernels is None:
        return None
    try:
        return NativeTower(kernels, tower, dtype, num_threads, releases=releases)
    except Unsupported as reason:
        _LOG.info("the native kernels are not used for this tower: %s", reason)
        return None
