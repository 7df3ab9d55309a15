"""What a model needs to write: its cache, an executor over it, a scheduler, and the two halves of the write lane.

Runs when a model is loaded, in any thread. Knows no requests.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from danlu.models.executor import Executor
from danlu.models.fastest import make_executor
from danlu.models.model import Model
from danlu.models.native.executor import NativeExecutor
from danlu.models.paged import PAGE, PagedCache, Segment, bytes_of_page, num_pages
from danlu.serve.engine.config import EngineConfig, choose_cache_tokens
from danlu.serve.engine.pages import PagePool
from danlu.serve.engine.prepare import Preparer
from danlu.serve.engine.probe import choose_threads
from danlu.serve.engine.scheduler import Scheduler
from danlu.serve.engine.speculate import Speculator
from danlu.serve.engine.spelling import Spelling
from danlu.serve.engine.writer import Writer

_LOG = logging.getLogger(__name__)
_LONGEST_ANSWER = 2048
"""Tokens of an encoder-decoder's answer that there must be room for: some of them know no limit."""
ALL_THREADS = torch.get_num_threads()
"""As many as torch uses unless somebody says otherwise: the cores, or OMP_NUM_THREADS."""
_PROBED_ROWS = (1, 8)
"""Rows of the steps that are timed to choose a number of threads: one person, and some."""


@dataclass(frozen=True)
class WriteLane:
    """Everything of one model that writes."""

    writer: Writer
    preparer: Preparer
    executor: Executor
    pools: tuple[tuple[PagePool, int], ...]
    """Pools of pages, and the bytes of a page of each."""

    @property
    def promised_bytes(self) -> int:
        """Memory that the cache does not take yet, but will as answers come."""
        return sum(pool.num_untouched * size for pool, size in self.pools)

    @property
    def is_native(self) -> bool:
        """Whether the kernels in C do the work, with threads of their own."""
        return isinstance(self.executor, NativeExecutor)

    def close(self) -> None:
        """End the threads."""
        if isinstance(self.executor, NativeExecutor):
            self.executor.close()


def make_write_lane(model: Model, config: EngineConfig, room_bytes: int, *, owns_model: bool) -> WriteLane:
    """``room_bytes`` is what the cache may choose from; ``owns_model`` lets go of weights that were packed.

    Raises ResourceError when there is no room for a cache.
    """
    stack = model.stack_config
    dtype = torch.int8 if config.cache_type == "int8" else model.activation_dtype
    page_bytes = bytes_of_page(stack, dtype)
    memory_bytes = bytes_of_page(stack, dtype, of_memory=True)
    encoder, context = model.config.encoder, stack.context_length
    if encoder is not None:  # as many tokens of sources as of answers
        context = min(context, _LONGEST_ANSWER)
    tokens = choose_cache_tokens(config, context, (page_bytes + memory_bytes) // PAGE, room_bytes)
    num_memory = 0
    if encoder is not None:
        num_memory = min(num_pages(tokens), config.max_rows * num_pages(encoder.stack.context_length))
    num_slots = config.max_rows if stack.is_recurrent else None
    pool = PagePool(num_pages(tokens) if page_bytes else 1)
    memory_pool = PagePool(num_memory) if num_memory else None
    cache = PagedCache(
        stack,
        pool.num_pages,
        dtype,
        model.device,
        num_slots=num_slots or 1,
        num_memory_pages=num_memory,
    )
    scheduler = Scheduler(config, pool, has_pages=page_bytes > 0, num_slots=num_slots, memory_pool=memory_pool)
    spelling = Spelling(model.chat.tokenizer.target) if model.has_tokenizer else None
    executor = make_executor(model, cache, num_threads=config.threads or ALL_THREADS, owns_network=owns_model)
    if isinstance(executor, NativeExecutor) and config.threads is None:
        executor.use_few_threads(probed_threads(executor, model))
    pools = ((pool, page_bytes), *([(memory_pool, memory_bytes)] if memory_pool is not None else []))
    speculator = Speculator() if config.speculation and not stack.is_recurrent else None  # states take no token back
    writer = Writer(executor, scheduler, spelling, speculator)
    return WriteLane(writer, Preparer(model, scheduler, config), executor, pools)


def probed_threads(executor: NativeExecutor, model: Model) -> int:
    """How many threads write fastest with this model: measured once for its shape on this machine. Prompts are read by
    all of them."""
    if model.config.encoder is not None:  # a step needs a memory; encoding takes most of the time, and all cores
        return ALL_THREADS

    def step(num_threads: int) -> None:
        executor.use_few_threads(num_threads)
        for count in _PROBED_ROWS:
            rows = min(count, executor.cache.num_pages)
            executor.run([0] * rows, [Segment((row,), 0, 1) for row in range(rows)], range(rows))

    found = choose_threads(step, _shape(model), candidates=(1, ALL_THREADS))
    _LOG.info("%d threads write fastest", found)
    return found


def _shape(model: Model) -> str:
    """What the speed of a step depends on."""
    stack = model.stack_config
    sizes = f"{stack.num_layers} layers of {stack.width}, vocabulary {model.config.vocabulary_size}"
    return f"{model.architecture.model_type}, {sizes}, {model.scheme or model.precision}, torch {torch.__version__}"
