"""Weights on disk: safetensors files read lazily and written whole. Knows no names and no model."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.core.files import disk_errors, read_json
from danlu.models.pages import empty_pages

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Weights that only a pickle reader could open."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class TensorFiles:
    """Several safetensors files as one mapping of names; a tensor is read, into memory of its own, when it is asked
    for. Files are not mapped: pages of a mapping that were read would count as memory of ours."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stored: dict[str, _Stored] = {}
        for path in paths:
            for name, stored in _read_header(path).items():
                if name in self._stored:
                    raise ModelError(
                        f"Tensor {name} is in both {self._stored[name].path.name} and {path.name}.",
                        "Keep the files of one model only.",
                    )
                self._stored[name] = stored

    @classmethod
    def of_folder(cls, folder: Path) -> TensorFiles:
        """The weights of a model folder: the shards its index names, model.safetensors, or all *.safetensors."""
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            paths = [folder / name for name in _shards(index)]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise ModelError(f"{folder} lacks {', '.join(missing)}.", "Fetch the missing shards.")
        elif (folder / "model.safetensors").is_file():
            paths = [folder / "model.safetensors"]
        else:
            paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
            hint = "Convert the weights to safetensors first."
            if pickled:
                hint = f"{pickled[0]} is a pickle, which can run code, so it is never read. {hint}"
            raise ModelError(f"{folder} has no *.safetensors.", hint)
        return cls(paths)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first."""
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """Number type as the format calls it: F32, BF16, I8, …"""
        return self._stored[name].dtype

    def size_bytes(self, name: str) -> int:
        """Bytes of one tensor in its file."""
        return self._stored[name].size_bytes

    def read(self, name: str) -> Tensor:
        """One tensor, as stored."""
        stored = self._stored[name]
        raw = empty_pages((stored.size_bytes,), torch.uint8)
        with open(stored.path, "rb", buffering=0) as handle:
            handle.seek(stored.start)
            view, done = raw.numpy().data, 0
            while done < stored.size_bytes:  # one call reads at most 2 GiB
                count = handle.readinto(view[done:])
                if not count:
                    raise ModelError(f"{stored.path} became shorter while it was read.", "Load the model again.")
                done += count
        return raw.view(_DTYPES[stored.dtype]).reshape(stored.shape)


def _read_header(path: Path) -> dict[str, _Stored]:
    """Names, types, shapes and places of the tensors of a file, all checked against its size."""
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError(f"its header would have {length} bytes, the file has {size}")
            header: Any = json.loads(handle.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        return {name: _place(path, entry, 8 + length, size) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"{path} is damaged: {error}.", "Fetch or make it again.") from error


def _place(path: Path, entry: Mapping[str, Any], data: int, size: int) -> _Stored:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor has the type {dtype!r}, known are {', '.join(_DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"a tensor has the shape {shape} and lies from {begin!r} to {end!r}")
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize or data + end > size:
        raise ValueError(f"a tensor of {shape} {dtype} lies from {begin} to {end} of {size - data} bytes")
    return _Stored(path, dtype, shape, data + begin, end - begin)


def _shards(index: Path) -> list[str]:
    """File names in an index, without their folders: a model lies in one folder."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ModelError(f"{index} has no weight_map of names to files.", "Fetch it again.")
    return sorted({Path(shard).name for shard in weight_map.values()})


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``path``; a full or read-only disk is a ResourceError, as everywhere.

    The library hides the system's error number in a message of its own, so it is read from there.
    """
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with disk_errors(path):
        try:
            save_file(whole, path, metadata={"format": "pt"})
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets nobody else read; who may is the folder's say
