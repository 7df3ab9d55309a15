"""Reading GGUF files: metadata as plain values, tensors as fp32. Knows no family; archs/ map the names.

The header is read here, each length checked against the file before anything is made of it; only the expansion of
quantised blocks is the ``gguf`` package's.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from danlu.core.errors import ModelError

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Forms of tensors that can be read."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_VERSIONS = (2, 3)
_ROWS = 64
"""Rows that are expanded as one: blocks lie end to end, and the library takes a few rows at a time."""


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies."""

    shape: tuple[int, ...]
    form: gguf.GGMLQuantizationType
    start: int
    size_bytes: int


class GGUFFile:
    """One GGUF file: its header in memory, its tensors read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as handle:
            if handle.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file.", "Its first four bytes must be 'GGUF'.")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    self.metadata, self._tensors = _Header(data).read()
                except (ValueError, struct.error) as error:
                    raise ModelError(f"{path} is a damaged GGUF file: {error}.", "Fetch it again.") from error

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in torch order (rows first)."""
        return self._tensors[name].shape

    def form(self, name: str) -> str:
        """How a tensor is stored: F32, Q8_0, …"""
        return self._tensors[name].form.name

    def size_bytes(self, name: str) -> int:
        """Bytes of one tensor in the file."""
        return self._tensors[name].size_bytes

    def read(self, name: str) -> Tensor:
        """One tensor in fp32; quantised forms are expanded (values as stored: no rounding is added)."""
        stored = self._tensors[name]
        if stored.form.name not in READABLE:
            raise ModelError(
                f"{self.path.name}: tensor {name} is stored as {stored.form.name}.", f"Readable: {', '.join(READABLE)}."
            )
        data = np.fromfile(self.path, dtype=np.uint8, count=stored.size_bytes, offset=stored.start)
        *outer, row_bytes = quant_shape_to_byte_shape(stored.shape, stored.form)
        together = math.gcd(math.prod(outer), _ROWS)
        values = gguf.dequantize(data.reshape(-1, together * row_bytes), stored.form)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(stored.shape)


class _Header:
    """Reads along the bytes; raises ValueError or struct.error where they end or make no sense."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._place = len(b"GGUF")

    def read(self) -> tuple[dict[str, Any], dict[str, _Stored]]:
        """Metadata and tensors."""
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, known are {_VERSIONS} with the lowest byte first")
        num_tensors, num_fields = self._count(1), self._count(1)
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._text()
            metadata[key] = self._value(self._number("I"))
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        found = [self._tensor() for _ in range(num_tensors)]
        start = -(-self._place // alignment) * alignment
        tensors: dict[str, _Stored] = {}
        for name, shape, form, offset in found:
            size = math.prod(quant_shape_to_byte_shape(shape, form))
            if name in tensors:
                raise ValueError(f"it has two tensors {name!r}")
            if start + offset + size > len(self._data):
                raise ValueError(f"it ends before the end of tensor {name!r}")
            tensors[name] = _Stored(shape, form, start + offset, size)
        return metadata, tensors

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._place)
        self._place += struct.calcsize("<" + code)
        return value

    def _count(self, size: int) -> int:
        """How many things of at least ``size`` bytes follow."""
        count = self._number("Q")
        if count * size > len(self._data) - self._place:
            raise ValueError(f"it announces {count} values where {len(self._data) - self._place} bytes are left")
        return count

    def _text(self) -> str:
        length = self._count(1)
        self._place += length
        return self._data[self._place - length : self._place].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a field is of the unknown kind {kind}")
        kind = self._number("I")
        if kind == _STRING:
            return [self._text() for _ in range(self._count(8))]
        if kind not in _NUMBERS:
            raise ValueError(f"a list is of the unknown kind {kind}")
        size = struct.calcsize("<" + _NUMBERS[kind])
        count = self._count(size)
        values = struct.unpack_from(f"<{count}{_NUMBERS[kind]}", self._data, self._place)
        self._place += size * count
        return list(values)

    def _tensor(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        name, dimensions = self._text(), self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dimensions)]))
        return name, shape, gguf.GGMLQuantizationType(self._number("I")), self._number("Q")
