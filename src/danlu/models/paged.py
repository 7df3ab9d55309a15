"""What is kept of tokens already read, in pages: keys and values, what an encoder left, states of recurrent layers.

A row's tokens lie in pages of ``PAGE`` places that its table lists in order; a page may belong to many rows, so what
rows have in common is kept and computed once. Who owns which page is somebody else's business (decoding.py,
serve/engine/pages.py). Keys lie across their page, so that a query meets a whole page in one product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.attend import Layout, Memory
from danlu.models.attention import AttentionConfig, Project, State
from danlu.models.block import StackConfig
from danlu.models.native.copies import Copier
from danlu.models.native.kernels import load_kernels
from danlu.models.pages import empty_pages
from danlu.models.product import Rule, mix, visible

PAGE = 64
"""Tokens of a page."""

_Pools = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Keys, values and the scales of both, of every layer."""


@dataclass(frozen=True)
class MemoryPages:
    """Where the memory that a row looks back at lies."""

    table: Sequence[int]
    """Pages of the memory pools, in order."""
    length: int
    """Tokens."""


@dataclass(frozen=True)
class Segment:
    """New tokens of one row in a pass."""

    table: Sequence[int]
    """Pages of the row, in order; at least enough for ``start + count`` tokens."""
    start: int
    """Tokens of the row that its pages hold already."""
    count: int
    """New tokens, at least 1."""
    slot: int = 0
    """Where recurrent layers keep the row's state."""
    memory: MemoryPages | None = None
    """What a decoder with cross-attention looks back at."""
    adapter: int = 0
    """Which adapter the linears use; 0 for none."""


def num_pages(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE)


class PagedCache:
    """Pools of pages for one stack; zero at first.

    keys[layer]: (P, K, E, PAGE), values[layer]: (P, K, PAGE, E) of layers with attention, ``dtype``; the same of their
    memory, with pages of their own; states[layer]: name → fp32 (slots, …) of recurrent layers. Absent ones are empty.
    Of int8 ones key_scales[layer] and value_scales[layer] are fp32 (P, K, PAGE): a step for each token and head.
    """

    def __init__(
        self,
        config: StackConfig,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        *,
        num_slots: int = 1,
        num_memory_pages: int = 0,
    ) -> None:
        self.config = config
        self.num_pages = num_pages
        self.num_slots = num_slots
        self.num_memory_pages = num_memory_pages
        self.dtype = dtype
        self.device = device or torch.device("cpu")
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.memory_keys: list[Tensor] = []
        self.memory_values: list[Tensor] = []
        self.key_scales: list[Tensor] = []
        self.value_scales: list[Tensor] = []
        self.memory_key_scales: list[Tensor] = []
        self.memory_value_scales: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        for layer in config.layers:
            shapes = layer.mixer.state_shapes
            mixer = layer.mixer if isinstance(layer.mixer, AttentionConfig) else None
            for pools, attention, pages in (
                (self._own, mixer, num_pages),
                (self._memory, layer.cross, num_memory_pages),
            ):
                self._add(pools, attention, pages)
            self.states.append(
                {name: torch.zeros(num_slots, *shape, device=self.device) for name, shape in shapes.items()}
            )

    @property
    def _own(self) -> _Pools:
        return self.keys, self.values, self.key_scales, self.value_scales

    @property
    def _memory(self) -> _Pools:
        return self.memory_keys, self.memory_values, self.memory_key_scales, self.memory_value_scales

    @property
    def is_rounded(self) -> bool:
        """Whether what is read of pages differs from what was written there: 8-bit numbers."""
        return self.dtype == torch.int8

    def _add(self, pools: _Pools, attention: AttentionConfig | None, pages: int) -> None:
        heads, width = (0, 0) if attention is None else (attention.num_kv_heads, attention.head_width)
        pages = pages if heads else 0
        keys, values, key_scales, value_scales = pools
        keys.append(self._pool(self.dtype, pages, heads, width, PAGE))
        values.append(self._pool(self.dtype, pages, heads, PAGE, width))
        for scales in (key_scales, value_scales):
            scales.append(self._pool(torch.float32, pages if self.is_rounded else 0, heads, PAGE))

    def _pool(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Zeros; on a CPU a page takes memory only once something is written there."""
        if self.device.type == "cpu" and math.prod(shape):
            return empty_pages(shape, dtype, is_zero=True)
        return torch.zeros(*shape, dtype=dtype, device=self.device)

    def write(self, layer: int, where: tuple[Tensor, Tensor], k: Tensor, v: Tensor, *, of_memory: bool = False) -> None:
        """Keys and values, (N, K, E) each, to pages and places in them, (N,) each."""
        page, place = where
        keys, values, key_scales, value_scales = (pools[layer] for pools in (self._memory if of_memory else self._own))
        if self.is_rounded:
            (k, key_scales[page, :, place]), (v, value_scales[page, :, place]) = quantize_heads(k), quantize_heads(v)
        keys[page, :, :, place] = k.to(self.dtype)
        values[page, :, place] = v.to(self.dtype)

    def read(self, layer: int, table: Tensor, dtype: torch.dtype, *, of_memory: bool = False) -> tuple[Tensor, Tensor]:
        """Pages of a table (…): keys (…, K, E, PAGE) and values (…, K, PAGE, E), of ``dtype`` where they are 8-bit."""
        keys, values, key_scales, value_scales = (pools[layer] for pools in (self._memory if of_memory else self._own))
        if not self.is_rounded:
            return keys[table], values[table]
        k = keys[table] * key_scales[table].unsqueeze(-2)
        return k.to(dtype), (values[table] * value_scales[table].unsqueeze(-1)).to(dtype)

    def copy_pages(self, pairs: Sequence[tuple[int, int]], counts: Sequence[int] | None = None) -> None:
        """Copy pages: (source, target) each, of different targets that are no sources. With ``counts`` only so many
        tokens of each have to come along."""
        if not pairs:
            return
        if self._copier is not None:
            self._copier.copy(pairs, [PAGE] * len(pairs) if counts is None else counts)
            return
        sources, targets = (torch.tensor(ids, device=self.device) for ids in zip(*pairs, strict=True))
        for kind in self._own:
            for pool in kind:
                if pool.numel():
                    pool[targets] = pool[sources]

    @functools.cached_property
    def _copier(self) -> Copier | None:
        """Copies pages in C; None where torch has to."""
        kernels = load_kernels() if self.device.type == "cpu" else None
        keys, *others = ([pool for pool in kind if pool.numel()] for kind in self._own)
        return Copier(kernels, [pool for kind in others for pool in kind], keys) if kernels and keys else None

    def copy_slots(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy states of recurrent layers: (source, target) each, as they were before."""
        if not pairs:
            return
        sources, targets = (torch.tensor(ids, device=self.device) for ids in zip(*pairs, strict=True))
        for states in self.states:
            for pool in states.values():
                pool[targets] = pool[sources]

    def write_memory(self, layer: int, table: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Keys and values of one row's memory, (S, K, E) each."""
        self.write(layer, _where(table, 0, k.shape[0], self.device), k, v, of_memory=True)

    def size_bytes(self) -> int:
        """Memory it holds."""
        pools = [pool for kind in (*self._own, *self._memory) for pool in kind]
        pools += [pool for states in self.states for pool in states.values()]
        return sum(pool.numel() * pool.element_size() for pool in pools)


def bytes_of_page(config: StackConfig, dtype: torch.dtype, *, of_memory: bool = False) -> int:
    """Memory of one page in all layers of a stack, or of one page of what its cross-attention looks back at."""
    layers = [layer.cross if of_memory else layer.mixer for layer in config.layers]
    mixers = [layer for layer in layers if isinstance(layer, AttentionConfig)]
    step = torch.float32.itemsize if dtype == torch.int8 else 0
    return sum(2 * PAGE * mixer.num_kv_heads * (mixer.head_width * dtype.itemsize + step) for mixer in mixers)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """(…, E) → whole steps, int8 (…, E), and how large they are: a 127th of the largest number, fp32 (…)."""
    x = x.float()
    step = (x.abs().amax(dim=-1) / 127.0).clamp_min(1e-12)
    return (x / step.unsqueeze(-1)).round().to(torch.int8), step


def _where(table: Sequence[int], start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Page and place in it of ``count`` tokens from ``start``: (count,) each."""
    at = torch.arange(start, start + count, device=device)
    return torch.tensor(list(table), dtype=torch.long, device=device)[at // PAGE], at % PAGE


class PagedAttend:
    """Attention of new tokens to all that their rows' pages hold, themselves included. Rows are laid end to end.

    Rows with one new token each meet their keys in one padded product, longer pieces each alone.
    """

    def __init__(
        self,
        cache: PagedCache,
        segments: Sequence[Segment],
        remembered: Sequence[tuple[Memory, Sequence[MemoryPages]]] = (),
    ) -> None:
        """``remembered`` are memories that no pass has seen yet: their keys and values go into their pages first."""
        self._cache = cache
        self._remembered = remembered
        self._segments = segments
        self._device = cache.device
        self._layout = Layout([segment.count for segment in segments], cache.device)
        ends = torch.tensor([s.count for s in segments]).cumsum(0).tolist()
        self._spans = [slice(end - s.count, end) for end, s in zip(ends, segments, strict=True)]
        self._short = [i for i, s in enumerate(segments) if s.count == 1]
        self._long = [i for i, s in enumerate(segments) if s.count > 1]
        self._tables: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[object, ...], Tensor | None] = {}

    @functools.cached_property
    def _targets(self) -> tuple[Tensor, Tensor]:
        """Page and place in it of every new token, (N,) each. Rows of stacks without attention have no pages."""
        found = [_where(s.table, s.start, s.count, self._device) for s in self._segments]
        return torch.cat([pages for pages, _ in found]), torch.cat([places for _, places in found])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        cache = self._cache
        cache.write(layer, self._targets, k, v)
        if bias is not None:
            everything = tuple(range(len(self._segments)))
            return self._layout.pack(self._together(everything, self._layout.spread(q), layer, rule, bias))
        if not self._long:
            return self._together(tuple(self._short), q.unsqueeze(1), layer, rule, None).squeeze(1)
        mixed = torch.empty_like(q)
        for index in self._long:
            span = self._spans[index]
            mixed[span] = self._alone(index, q[span], k[span], v[span], layer, rule)
        if self._short:
            at = torch.tensor([self._spans[index].start for index in self._short], device=self._device)
            mixed[at] = self._together(tuple(self._short), q[at].unsqueeze(1), layer, rule, None).squeeze(1)
        return mixed

    def _alone(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, layer: int, rule: Rule
    ) -> Tensor:  # fmt: skip
        """One row's new tokens: (T, H, E) → (T, H, E)."""
        segment = self._segments[index]
        if segment.start or self._cache.is_rounded:
            table = torch.tensor(list(segment.table[: num_pages(segment.start + segment.count)]), device=self._device)
            span = segment.start + segment.count
            keys, values = self._cache.read(layer, table, q.dtype)
            k = keys.permute(0, 3, 1, 2).flatten(0, 1)[:span]  # (S, K, E)
            v = values.transpose(1, 2).flatten(0, 1)[:span]
            q, k, v = (x.to(q.dtype) for x in (q, k, v))

        def mask(queries: range, keys: range) -> Tensor | None:
            key = (rule, queries, keys)
            if key not in self._masks:
                self._masks[key] = visible(rule, queries, keys, None, self._device)
            return self._masks[key]

        return mix(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), rule, mask).squeeze(0)

    def _together(self, chosen: tuple[int, ...], q: Tensor, layer: int, rule: Rule, bias: Tensor | None) -> Tensor:
        """Rows side by side, padded: q (B, T, H, E) → (B, T, H, E)."""
        segments = [self._segments[index] for index in chosen]
        span = max(s.start + s.count for s in segments)
        table = self._table(chosen, [s.table for s in segments], span)
        key = (chosen, rule)
        if key not in self._masks:
            starts = torch.tensor([s.start for s in segments], device=self._device)
            places = starts.unsqueeze(1) + torch.arange(q.shape[1], device=self._device)  # (B, T)
            self._masks[key] = _closed(places.unsqueeze(-1), table.shape[1] * PAGE, rule)
        closed = self._masks[key]
        if bias is not None:
            padded = torch.nn.functional.pad(bias, (0, table.shape[1] * PAGE - bias.shape[-1]))
            closed = padded if closed is None else padded + closed
        return _product(q, *self._cache.read(layer, table, q.dtype), rule, closed)

    def _table(self, key: tuple[int, ...], tables: Sequence[Sequence[int]], span: int) -> Tensor:
        """Tables side by side, (B, W), those that are too short filled with a page that the mask hides."""
        if key not in self._tables:
            width = num_pages(span)
            rows = [[*table[:width], *([table[0]] * (width - len(table)))] for table in tables]
            self._tables[key] = torch.tensor(rows, device=self._device)
        return self._tables[key]

    def cross(self, layer: int, q: Tensor, project: Project, rule: Rule) -> Tensor:
        for memory, pages in self._remembered:
            k, v = project(memory.hidden)
            for k_row, v_row, row in zip(k.split(memory.lengths), v.split(memory.lengths), pages, strict=True):
                self._cache.write_memory(layer, row.table, k_row, v_row)
        memories = [segment.memory for segment in self._segments]
        assert all(memory is not None for memory in memories), "a decoder with cross-attention needs a memory"
        real = [memory for memory in memories if memory is not None]
        span = max(memory.length for memory in real)
        table = self._table((-1,), [memory.table for memory in real], span)
        if ("memory",) not in self._masks:
            lengths = torch.tensor([memory.length for memory in real], device=self._device)
            hidden = torch.arange(table.shape[1] * PAGE, device=self._device) >= lengths.view(-1, 1, 1, 1)
            self._masks[("memory",)] = torch.zeros(hidden.shape, device=self._device).masked_fill_(
                hidden, float("-inf")
            )
        kept = self._cache.read(layer, table, q.dtype, of_memory=True)
        rows = _product(self._layout.spread(q), *kept, rule, self._masks[("memory",)])
        return self._layout.pack(rows)

    def distances(self) -> Tensor:
        starts = torch.tensor([s.start for s in self._segments], device=self._device)
        places = starts.unsqueeze(1) + torch.arange(self._layout.longest, device=self._device)  # (B, T)
        columns = torch.arange(max(s.start + s.count for s in self._segments), device=self._device)
        return columns - places.unsqueeze(-1)  # (B, T, S)

    def row_lengths(self) -> Tensor:
        lengths = torch.tensor([s.start + s.count for s in self._segments], device=self._device)
        return torch.repeat_interleave(lengths, torch.tensor([s.count for s in self._segments], device=self._device))

    def spread(self, x: Tensor) -> Tensor:
        return self._layout.spread(x)

    def pack(self, rows: Tensor) -> Tensor:
        return self._layout.pack(rows)

    def real_tokens(self) -> Tensor | None:
        return None if self._layout.is_even else self._layout.real

    def state(self, layer: int) -> State | None:
        pools = self._cache.states[layer]
        slots = torch.tensor([s.slot for s in self._segments], device=self._device)
        goes_on = torch.tensor([s.start > 0 for s in self._segments], device=self._device)
        return {
            name: pool[slots] * goes_on.view(-1, *[1] * (pool.dim() - 1)) for name, pool in pools.items()
        }  # fmt: skip

    def keep(self, layer: int, state: Mapping[str, Tensor]) -> None:
        slots = torch.tensor([s.slot for s in self._segments], device=self._device)
        for name, new in state.items():
            self._cache.states[layer][name][slots] = new.to(self._cache.states[layer][name].dtype)


def _closed(places: Tensor, span: int, rule: Rule) -> Tensor | None:
    """What is added to scores of queries at ``places`` (B, T, 1): 0 where seen, -inf elsewhere; (B, 1, T, S)."""
    columns = torch.arange(span, device=places.device)
    hidden = columns > places
    if rule.window is not None:
        hidden |= columns <= places - rule.window
    return torch.zeros(hidden.shape, device=places.device).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _product(q: Tensor, keys: Tensor, values: Tensor, rule: Rule, closed: Tensor | None) -> Tensor:
    """q: (B, T, H, E); keys: (B, W, K, E, PAGE); values: (B, W, K, PAGE, E); closed: (B, 1 or H, T, W·PAGE) →
    (B, T, H, E)."""
    rows, new, num_q, width = q.shape
    num_kv = keys.shape[2]
    keys = keys.permute(0, 2, 3, 1, 4).reshape(rows * num_kv, width, -1)  # (B·K, E, S)
    values = values.transpose(1, 2).reshape(rows * num_kv, -1, width)  # (B·K, S, E)
    queries = (q * rule.scale).to(keys.dtype).view(rows, new, num_kv, num_q // num_kv, width)
    queries = queries.permute(0, 2, 3, 1, 4).reshape(rows * num_kv, -1, width)  # (B·K, H/K·T, E)
    scores = torch.bmm(queries, keys).view(rows, num_q, new, -1).float()
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if closed is not None:
        scores = scores + closed
    weights = torch.softmax(scores, dim=-1).to(values.dtype).view(rows * num_kv, -1, scores.shape[-1])
    mixed = torch.bmm(weights, values).view(rows, num_q, new, width)
    return mixed.transpose(1, 2).to(q.dtype)
