"""What is kept of tokens already read, so that each new token costs one step: keys and values, memory, states.

Rows are dense: rows 0…B-1 are in use, and a finished row is replaced by the last one. So a step never gathers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from danlu.models.block import StackConfig

_KEYS, _VALUES, _MEMORY_KEYS, _MEMORY_VALUES = "keys", "values", "memory_keys", "memory_values"


class KVCache:
    """``num_rows`` rows of at most ``num_tokens`` tokens, and ``memory_tokens`` of the memory each looks back at.

    Keys and values are (B, K, S, E) a layer, in ``dtype``; states of recurrent layers are fp32.
    """

    def __init__(
        self,
        config: StackConfig,
        num_rows: int,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        memory_tokens: int = 0,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.num_rows = num_rows
        self.num_tokens = num_tokens
        self.memory_tokens = memory_tokens
        self.memory_lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._memory_mask: Tensor | None = None
        self._layers: list[dict[str, Tensor]] = []
        for layer in config.layers:
            slots: dict[str, Tensor] = {}
            if layer.mixer.state_shapes:
                for name, shape in layer.mixer.state_shapes.items():
                    slots[name] = torch.zeros(num_rows, *shape, device=device)
            else:
                slots |= self._pair((_KEYS, _VALUES), layer.mixer, num_tokens)
            if layer.cross is not None:
                slots |= self._pair((_MEMORY_KEYS, _MEMORY_VALUES), layer.cross, memory_tokens)
            self._layers.append(slots)

    def _pair(self, names: tuple[str, str], attention: object, num_tokens: int) -> dict[str, Tensor]:
        shape = (self.num_rows, attention.num_kv_heads, num_tokens, attention.head_width)  # pyright: ignore[reportAttributeAccessIssue]
        return {name: torch.zeros(shape, dtype=self.dtype, device=self.device) for name in names}

    def write_rows(self, layer: int, first: int, lengths: Sequence[int], shared: int, k: Tensor, v: Tensor) -> None:
        """Fill rows first… from their start. k, v: (N, K, E), ``shared`` tokens of all rows, then rows end to end."""
        ends = list(itertools.accumulate(lengths, initial=shared))[1:]
        for name, new in ((_KEYS, k), (_VALUES, v)):
            slot = self._layers[layer][name]
            slot[first : first + len(lengths), :, :shared] = new[:shared].transpose(0, 1)
            for row, (length, end) in enumerate(zip(lengths, ends, strict=True), start=first):
                slot[row, :, shared : shared + length] = new[end - length : end].transpose(0, 1)

    def append(
        self, layer: int, places: Tensor, k: Tensor, v: Tensor, span: int, start: int | None
    ) -> tuple[Tensor, Tensor]:
        """Put new tokens of rows 0… at ``places`` (B, T), which begin at ``start`` in every row if it is given.

        k, v: (B, T, K, E). Returns the first ``span`` keys and values of those rows, (B, K, S, E).
        """
        keys, values = self._layers[layer][_KEYS], self._layers[layer][_VALUES]
        num_rows, num_new = places.shape
        if start is not None:
            where = (slice(num_rows), slice(None), slice(start, start + num_new))
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            where = (torch.arange(num_rows, device=self.device).unsqueeze(1), slice(None), places)
        keys[where], values[where] = k.to(self.dtype), v.to(self.dtype)
        return keys[:num_rows, :, :span], values[:num_rows, :, :span]

    def expect_memory(self, first: int, lengths: Sequence[int]) -> None:
        """Rows first… will look back at memories of these lengths."""
        self.memory_lengths[first : first + len(lengths)] = torch.tensor(lengths, device=self.device)
        self._memory_mask = None

    def write_memory(self, layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """Keys and values of the memories of rows first…, side by side: (B, S, K, E)."""
        for name, new in ((_MEMORY_KEYS, k), (_MEMORY_VALUES, v)):
            slot = self._layers[layer][name]
            slot[first : first + new.shape[0], :, : new.shape[1]] = new.transpose(1, 2).to(self.dtype)

    def memory(self, layer: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of the memories of rows 0…, (B, K, S, E), and a mask with -inf at padding, (B, 1, 1, S)."""
        if self._memory_mask is None or self._memory_mask.shape[0] != num_rows:
            lengths = self.memory_lengths[:num_rows]
            span = int(lengths.max())
            hidden = torch.arange(span, device=self.device) >= lengths.unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            self._memory_mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None, :]
        slots, span = self._layers[layer], self._memory_mask.shape[-1]
        return slots[_MEMORY_KEYS][:num_rows, :, :span], slots[_MEMORY_VALUES][:num_rows, :, :span], self._memory_mask

    def state(self, layer: int, num_rows: int) -> Mapping[str, Tensor]:
        """What a recurrent layer remembers of rows 0…."""
        names = self.config.layers[layer].mixer.state_shapes
        return {name: self._layers[layer][name][:num_rows] for name in names}

    def write_state(self, layer: int, first: int, state: Mapping[str, Tensor]) -> None:
        """Remember this of rows first…."""
        for name, new in state.items():
            self._layers[layer][name][first : first + new.shape[0]] = new

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one row, and all else that is kept of it, over another."""
        for name, slot in self._slots():
            if name in (_KEYS, _VALUES):
                slot[target, :, :length] = slot[source, :, :length]
            else:
                slot[target] = slot[source]
        self.memory_lengths[target] = self.memory_lengths[source]
        self._memory_mask = None

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes a copy of what row ``rows[i]`` was (beam search)."""
        for _, slot in self._slots():
            slot[: rows.shape[0]] = slot.index_select(0, rows)
        self.memory_lengths[: rows.shape[0]] = self.memory_lengths.index_select(0, rows)
        self._memory_mask = None

    def grown(self, num_rows: int, num_tokens: int) -> KVCache:
        """A larger cache with the same content."""
        larger = KVCache(self.config, num_rows, num_tokens, self.dtype, self.device, self.memory_tokens)
        for old, new in zip(self._layers, larger._layers, strict=True):
            for name, slot in old.items():
                target = new[name][: self.num_rows]
                (target[:, :, : self.num_tokens] if name in (_KEYS, _VALUES) else target).copy_(slot)
        larger.memory_lengths[: self.num_rows] = self.memory_lengths
        return larger

    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(slot.numel() * slot.element_size() for _, slot in self._slots())

    def _slots(self) -> Iterator[tuple[str, Tensor]]:
        for slots in self._layers:
            yield from slots.items()
