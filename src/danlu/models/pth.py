"""Reads the tensors of a PyTorch checkpoint (.pth, .pt, .bin) without unpickling it.

Such a file is a program for a small stack machine that may import and call anything. Here the program is only read:
``pickletools`` lists its opcodes, this file does what the few that a state dict needs would do, and any other opcode,
or any name but those of tensors and their storages, is an error. Nothing is ever imported or called.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from danlu.core.errors import ModelError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """What a program would import."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor: where it begins in a storage, and how it is laid out there."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Refused(Exception):
    """The program does something a state dict does not need."""


def read_pth(path: Path) -> dict[str, Tensor]:
    """Tensors by name, whether they are the file's only content or stand under "state_dict" or "model".

    Raises ModelError when the file is no checkpoint, is damaged, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(0)
            found, storages = _read_zip(path) if is_zip else _read_legacy(file)
        return _tensors(found, storages)
    except _Refused as error:
        raise ModelError(
            f"{path} cannot be read without running it: {error}.", "Save its tensors as safetensors first."
        ) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a whole PyTorch checkpoint: {error}.", "Fetch or make it again.") from error


_Storages = Callable[[_Storage], Tensor]


def _read_zip(path: Path) -> tuple[Any, _Storages]:
    """What torch ≥ 1.6 writes: data.pkl, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        root = program.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("its numbers are big-endian")
        found = _run(io.BytesIO(archive.read(program)))

    def storage(wanted: _Storage) -> Tensor:
        with zipfile.ZipFile(path) as archive:
            return _numbers(archive.read(f"{root}data/{wanted.key}"), wanted)

    return found, storage


def _read_legacy(file: BinaryIO) -> tuple[Any, _Storages]:
    """What older versions write: four programs (a magic number, a version, the machine, the content), then a list of
    storages and these themselves, each after its length."""
    if _run(file) != _LEGACY_MAGIC:
        raise ValueError("it does not begin like one")
    _run(file)
    if not _run(file).get("little_endian", False):
        raise _Refused("its numbers are big-endian")
    found = _run(file)
    keys = _run(file)
    wanted = {view.storage.key: view.storage for view in _views(found).values()}
    read: dict[str, Tensor] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        if key not in wanted:
            raise _Refused(f"storage {key} belongs to no tensor")
        read[key] = _numbers(file.read(count * wanted[key].dtype.itemsize), wanted[key])
    return found, lambda storage: read[storage.key]


def _numbers(content: bytes, wanted: _Storage) -> Tensor:
    if len(content) < wanted.count * wanted.dtype.itemsize:
        raise ValueError(f"storage {wanted.key} is cut off")
    if not wanted.count:
        return torch.empty(0, dtype=wanted.dtype)
    return torch.frombuffer(bytearray(content), dtype=wanted.dtype, count=wanted.count)


def _tensors(found: Any, storages: _Storages) -> dict[str, Tensor]:
    read: dict[_Storage, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, view in _views(found).items():
        if view.storage not in read:
            read[view.storage] = storages(view.storage)
        tensors[name] = read[view.storage].as_strided(view.shape, view.stride, view.offset).clone()
    return tensors


def _views(found: Any) -> dict[str, _View]:
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError("it holds no tensors by name")
    wrong = [name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, _View)]
    if wrong:
        raise ValueError(f"'{wrong[0]}' is not a tensor")
    return dict(found)


def _run(file: BinaryIO) -> Any:
    """The value that one program makes."""
    stack: list[Any] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE"
                | "SHORT_BINSTRING" | "BINSTRING"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "GLOBAL":
                stack.append(_Name(*argument.split(" ", 1)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":  # attributes of an ordered dict: versions of modules
                stack.pop()
            case name:
                raise _Refused(f"it uses {name}")
    raise ValueError("it ends early")


def _storage(reference: Any) -> _Storage:
    kind, name, key, _, count, *_ = reference
    if kind != "storage" or not isinstance(name, _Name) or name.module != "torch" or name.name not in _DTYPES:
        raise _Refused(f"it refers to {reference!r}")
    return _Storage(str(key), _DTYPES[name.name], int(count))


def _made(what: Any, arguments: Any) -> Any:
    """What calling ``what`` would have made."""
    if what == _Name("collections", "OrderedDict") and arguments == ():
        return {}
    if what == _Name("torch._utils", "_rebuild_tensor_v2"):
        storage, offset, shape, stride, *_ = arguments
        return _View(storage, offset, tuple(shape), tuple(stride))
    if what == _Name("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    name = f"{what.module}.{what.name}" if isinstance(what, _Name) else repr(what)
    raise _Refused(f"it calls {name}")
