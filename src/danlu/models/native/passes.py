"""Buffers of one program, and passes over them: who stands where becomes the tables that kernels read.

Knows no requests. Everything that C will reach through a number is checked here first.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.block import Stack
from danlu.models.native.adapters import Adapters
from danlu.models.native.kernels import KINDS, Kernels
from danlu.models.native.structs import CHUNK, MOST_RANK, PAGE, Code, Op, Pass
from danlu.models.native.tables import Angles, Distances
from danlu.models.native.writer import CHOSEN, LOGITS, NUM_BUFFERS, OUT, STREAM, Program

_FEWEST = 64
"""Tokens that buffers hold at least."""
_KEPT_LOGITS = 1 << 23
"""Numbers of logits up to which their memory is kept between passes."""
_FEW_TOKENS = 40
"""Passes of at most so many tokens are steps of answers, not prompts."""
_FEW_KEYS = 16_384
"""Keys of all rows together whose reading is not worth more threads either."""
_SPLIT_FROM = 2 * CHUNK
"""Keys of a row from which on threads share one row."""
_MOST_PARTIALS = 1 << 23
"""Numbers that sharing rows may take."""


@dataclass(frozen=True)
class Span:
    """New tokens of one row."""

    table: Sequence[int]
    """Pages of the row."""
    start: int
    """Tokens it has already."""
    count: int
    """New tokens."""
    memory: tuple[Sequence[int], int] | None = None
    """Pages of the memory and its tokens."""
    adapter: int = -1
    """Its adapter; -1 for none."""


@dataclass(frozen=True)
class Pools:
    """Pages of every layer: own keys and values, those of the memory."""

    keys: Sequence[Tensor]
    """Of each layer."""
    values: Sequence[Tensor]
    """Of each layer."""
    memory_keys: Sequence[Tensor]
    """Of each layer; of no layer where there is no memory."""
    memory_values: Sequence[Tensor]
    """Of each layer."""
    num_pages: int
    """Of each own pool."""
    num_memory_pages: int
    """Of each pool of the memory."""
    key_scales: Sequence[Tensor] = ()
    """Of 8-bit keys of each layer."""
    value_scales: Sequence[Tensor] = ()
    """Of 8-bit values of each layer."""
    memory_key_scales: Sequence[Tensor] = ()
    """Of 8-bit keys of the memory."""
    memory_value_scales: Sequence[Tensor] = ()
    """Of 8-bit values of the memory."""


class Passes:
    """Runs a program. Not thread-safe."""

    def __init__(self, kernels: Kernels, program: Program, stack: Stack, pools: Pools, num_threads: int) -> None:
        self.program = program
        self._ops = program.freeze()
        self._looks_back = any(op.cross for op in self._ops)
        self._angles = Angles(program.rotaries)
        self._distances = Distances(stack.relative)
        self._kernels = kernels
        self._threads = kernels.threads(num_threads)
        self.few_threads = num_threads
        """Threads for passes of few tokens: small products may not be worth meeting over."""
        self._pools = pools
        self._check_pools()
        self._pool_pointers = [
            _pointers(kind) for kind in (pools.keys, pools.memory_keys, pools.values, pools.memory_values)
        ]
        self._scale_pointers = [
            _pointers(kind)
            for kind in (
                pools.key_scales, pools.memory_key_scales, pools.value_scales, pools.memory_value_scales
            )
        ]  # fmt: skip
        self.adapters = Adapters(program)
        self._room = 0
        self._grow(_FEWEST)

    @property
    def num_threads(self) -> int:
        """Threads that work, the caller's included."""
        return self._threads.num_threads

    def use_threads(self, num_threads: int) -> None:
        """Run the next passes with so many threads."""
        self.few_threads = num_threads
        if num_threads != self._threads.num_threads:
            self._threads.close()
            self._threads = self._kernels.threads(num_threads)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _check_pools(self) -> None:
        """Pages of each layer must be what its operations take them for."""
        pools = self._pools
        expected = pools.keys[0].dtype
        for pool in (*pools.keys, *pools.values, *pools.memory_keys, *pools.memory_values):
            assert pool.dtype == expected, f"pages hold {pool.dtype} beside {expected}"
            assert pool.is_contiguous(), "pages lie in one piece"
        for op in self._ops:
            if op.code not in (Code.STORE, Code.ATTEND):
                continue
            kinds = (pools.memory_keys, pools.memory_values) if op.cross else (pools.keys, pools.values)
            rows = (pools.num_memory_pages if op.cross else pools.num_pages) * op.kv_heads * PAGE
            assert all(kind[op.layer].numel() >= rows * op.width for kind in kinds), (
                f"pages of layer {op.layer} are too small"
            )
            if expected != torch.int8:
                continue
            kinds = (
                (pools.memory_key_scales, pools.memory_value_scales)
                if op.cross else (pools.key_scales, pools.value_scales)
            )  # fmt: skip
            assert all(kind[op.layer].dtype == torch.float32 and kind[op.layer].numel() >= rows for kind in kinds), (
                f"8-bit pages of layer {op.layer} lack scales"
            )

    def _grow(self, num_tokens: int) -> None:
        """Have room for so many tokens."""
        if num_tokens <= self._room:
            return
        self._room = max(_FEWEST, 1 << (num_tokens - 1).bit_length())
        choices = self._room * self.program.most_choices
        rows = [1 if b == LOGITS else choices if b >= CHOSEN else self._room for b in range(NUM_BUFFERS)]
        self.buffers = [torch.empty(count, width) for count, width in zip(rows, self.program.widths, strict=True)]
        self._prepared = torch.empty(self._room * self.program.prepared_bytes + 64, dtype=torch.uint8)
        self._steps = torch.empty(self._room * self.program.most_groups * 2)
        self._places = torch.empty(choices, dtype=torch.int32)
        self._shares = torch.empty(choices)
        self._sorted = torch.empty(4 * self.program.most_experts + 4, dtype=torch.int32)

    def _grow_logits(self, num_outs: int) -> None:
        width = self.program.widths[LOGITS]
        if self.buffers[LOGITS].shape[0] >= num_outs:
            return
        keeps = num_outs * width <= _KEPT_LOGITS
        rows = 1 << (num_outs - 1).bit_length() if keeps else num_outs
        self.buffers[LOGITS] = torch.empty(rows, width)

    def run(self, x: Tensor, spans: Sequence[Span], outs: Sequence[int], *, with_head: bool) -> Tensor:
        """x: (N, D) embeddings, rows laid end to end → hidden states (M, D) or, with the head, logits (M, V): views
        of buffers that the next pass overwrites."""
        num_tokens = sum(span.count for span in spans)
        assert x.shape == (num_tokens, self.program.widths[STREAM]), "as many embeddings as new tokens"
        assert all(0 <= out < num_tokens for out in outs), "outs are numbers of new tokens"
        self._grow(max(num_tokens, len(outs)))
        if with_head:
            self._grow_logits(len(outs))
        self.buffers[STREAM][:num_tokens].copy_(x)
        work = Pass(num_tokens=num_tokens, num_outs=len(outs), num_products=len(self.program.products))
        work.num_threads = self._worth(num_tokens, sum(span.start + span.count for span in spans))
        kept = [self._describe(work, spans), self._point(work, outs, self._slice(0, with_head))]
        kept.append(self._adapt(work, spans, outs))
        self._threads.run(work, work.num_threads)
        del kept
        return self.buffers[LOGITS if with_head else OUT][: len(outs)]

    def run_head(self, hidden: Tensor) -> Tensor:
        """(M, D) → (M, V), a view of a buffer that the next pass overwrites."""
        assert self.program.has_head, "this program ends with hidden states"
        assert hidden.shape[1] == self.program.widths[OUT], "hidden states of this width"
        count = hidden.shape[0]
        self._grow(count)
        self._grow_logits(count)
        self.buffers[OUT][:count].copy_(hidden)
        work = Pass(num_tokens=count, num_outs=count, num_products=len(self.program.products))
        rows = torch.zeros(count, dtype=torch.int32)
        work.rows = work.positions = rows.data_ptr()
        kept = self._point(work, [], self._slice(self.program.num_body, True))
        self._threads.run(work, self._worth(count, 0))
        del kept
        return self.buffers[LOGITS][:count]

    def _worth(self, num_tokens: int, num_keys: int) -> int:
        """Threads for a pass of so many tokens that look at so many keys."""
        return self.few_threads if num_tokens <= _FEW_TOKENS and num_keys <= _FEW_KEYS else self.num_threads

    def _slice(self, first: int, with_head: bool) -> tuple[int, int]:
        return first, len(self._ops) if with_head else self.program.num_body

    def _describe(self, work: Pass, spans: Sequence[Span]) -> list[Tensor]:
        """Where tokens stand and which pages their rows have."""
        for span in spans:
            assert span.count > 0, "a row needs a new token"
            assert span.start >= 0, "a row starts at 0 or later"
        ends = [span.start + span.count for span in spans]
        positions = list(itertools.chain.from_iterable(range(s.start, s.start + s.count) for s in spans))
        rows = list(itertools.chain.from_iterable(itertools.repeat(row, s.count) for row, s in enumerate(spans)))
        kept = [torch.tensor(numbers, dtype=torch.int32) for numbers in (positions, rows)]
        work.positions, work.rows = (tensor.data_ptr() for tensor in kept)
        kept += self._tables(work, 0, [span.table for span in spans], ends, self._pools.num_pages)
        longest = max(ends)
        memories = [span.memory for span in spans if span.memory is not None]
        if memories:
            assert len(memories) == len(spans), "a decoder with cross-attention needs a memory"
            tables, lengths = [table for table, _ in memories], [length for _, length in memories]
            kept += self._tables(work, 1, tables, lengths, self._pools.num_memory_pages)
            longest = max(longest, *lengths)
        else:
            assert not self._looks_back, "a decoder with cross-attention needs a memory"
        self._angles.reach(max(ends))
        self._distances.reach(max(ends))
        if self._distances.table is not None:
            work.bias, work.bias_zero = self._distances.table.data_ptr(), self._distances.zero
            work.bias_stride = self._distances.table.shape[1]
        return [*kept, *self._split(work, len(positions), len(spans), longest)]

    def _adapt(self, work: Pass, spans: Sequence[Span], outs: Sequence[int]) -> list[Tensor]:
        """Which tokens use which adapter."""
        if all(span.adapter < 0 for span in spans) or self.adapters.pointer is None:
            return []
        slots = self.adapters.slots_of([span.adapter for span in spans], [span.count for span in spans])
        taken = slots[torch.tensor(outs, dtype=torch.long)]
        lowered = torch.empty(max(len(slots), len(taken)), MOST_RANK)
        work.adapters, work.lowered = self.adapters.pointer, lowered.data_ptr()
        work.slots[0], work.slots[1] = slots.data_ptr(), taken.data_ptr()
        return [slots, taken, lowered]

    def _tables(
        self, work: Pass, which: int, tables: Sequence[Sequence[int]], lengths: Sequence[int], num_pages: int
    ) -> list[Tensor]:
        needed = [-(-length // PAGE) for length in lengths]
        for table, count, length in zip(tables, needed, lengths, strict=True):
            assert 0 < count <= len(table), f"{len(table)} pages cannot hold {length} tokens"
        width = max(needed)
        flat: list[int] = []
        for table, count in zip(tables, needed, strict=True):
            flat.extend(table[:count])
            flat.extend(itertools.repeat(0, width - count))
        assert 0 <= min(flat) <= max(flat) < num_pages, f"pages are 0 to {num_pages - 1}"
        kept = [torch.tensor(numbers, dtype=torch.int32) for numbers in (flat, lengths)]
        work.tables[which], work.lengths[which] = (tensor.data_ptr() for tensor in kept)
        work.table_width[which] = width
        return kept

    def _split(self, work: Pass, num_tokens: int, num_rows: int, longest: int) -> list[Tensor]:
        """Whether threads share the keys of one row: when there are fewer rows and heads than threads can use."""
        program = self.program
        enough = 2 * work.num_threads
        if work.num_threads == 1 or longest < _SPLIT_FROM or num_rows * program.fewest_kv_heads >= enough:
            return []
        splits = -(-longest // CHUNK)
        size = num_tokens * program.most_heads * splits * (program.most_head_width + 2)
        if size > _MOST_PARTIALS:
            return []
        partials = torch.empty(size)
        work.num_splits, work.partials = splits, partials.data_ptr()
        return [partials]

    def _point(self, work: Pass, outs: Sequence[int], some: tuple[int, int]) -> list[object]:
        """What does not depend on the tokens."""
        chosen = torch.tensor(outs, dtype=torch.int32)
        buffers = (ctypes.c_void_p * len(self.buffers))(*[buffer.data_ptr() for buffer in self.buffers])
        strides = (ctypes.c_int32 * len(self.buffers))(*[buffer.shape[1] for buffer in self.buffers])
        angles = _pointers(self._angles.tables)
        work.ops = ctypes.addressof(self._ops) + some[0] * ctypes.sizeof(Op)
        work.num_ops = some[1] - some[0]
        work.outs, work.buffers, work.strides = chosen.data_ptr(), ctypes.addressof(buffers), ctypes.addressof(strides)
        work.angles = ctypes.addressof(angles)
        keys, memory_keys, values, memory_values = (ctypes.addressof(pointers) for pointers in self._pool_pointers)
        work.keys[0], work.keys[1], work.values[0], work.values[1] = keys, memory_keys, values, memory_values
        keys, memory_keys, values, memory_values = (ctypes.addressof(pointers) for pointers in self._scale_pointers)
        work.key_scales[0], work.key_scales[1] = keys, memory_keys
        work.value_scales[0], work.value_scales[1] = values, memory_values
        work.kept = KINDS[self._pools.keys[0].dtype]
        work.prepared = self._prepared.data_ptr() + -self._prepared.data_ptr() % 64
        work.steps = self._steps.data_ptr()
        work.places, work.shares = self._places.data_ptr(), self._shares.data_ptr()
        work.sorted = self._sorted.data_ptr()
        return [chosen, buffers, strides, angles]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(tensors)))(*[tensor.data_ptr() for tensor in tensors])
