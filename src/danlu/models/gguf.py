"""Reading GGUF files: metadata as plain values, tensors as fp32. Knows no family; archs/ map the names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from danlu.core.errors import ModelError

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


class GGUFFile:
    """One memory-mapped GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as handle:
            if handle.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file.", "Its first four bytes must be 'GGUF'.")
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path} is a damaged GGUF file: {error}", "Fetch it again.") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.metadata = dict(self._read_metadata())

    def _read_metadata(self) -> Iterator[tuple[str, Any]]:
        for name, field in self._reader.fields.items():
            yield name, field.contents()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in torch order (rows first)."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str) -> Tensor:
        """One tensor in fp32; quantised forms are expanded (values as stored: no rounding is added)."""
        tensor = self._tensors[name]
        if tensor.tensor_type.name not in READABLE:
            raise ModelError(
                f"{self.path.name}: tensor {name} is stored as {tensor.tensor_type.name}.",
                f"Readable: {', '.join(READABLE)}.",
            )
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        copy = np.array(values, dtype=np.float32)  # the map is read-only
        return torch.from_numpy(copy).reshape(self.shape(name))
