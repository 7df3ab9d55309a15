"""Checkpoints that many processes write together, whole or absent, and that any other number of them can read.

Every process writes one safetensors file: its rows of tensors that are spread (DTensors), and its share of those that
every process has. A manifest says where the rows of each tensor lie and what each file's hash is; it is written last,
and one rename publishes the folder, which must be one that all machines see. Knows tensors and numbers by name, not
what they mean; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from danlu.core.errors import DanluError, ResourceError
from danlu.core.files import disk_errors, sha256_file, sync_folder, write_json
from danlu.models.tensors import save_tensors
from danlu.train.sharded import is_sharded, mine, of_rows, rows_of
from danlu.train.world import World

_PREFIX = "step-"
_MANIFEST = "checkpoint.json"
_KEPT = 2
"""Checkpoints that are kept, so a damaged newest one costs little."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and numbers as they were after ``step`` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_together(
    folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], world: World
) -> None:
    """Write ``folder``/step-N atomically, then remove all but the two newest. Every process must call it alike.

    ``values`` are JSON, the first process's. When one process cannot write, every one raises ResourceError.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        _together(world, lambda: _make(temporary) if world.is_first else None)
        parts = _together(world, lambda: _write(temporary, tensors, world))
        manifest = {"step": step, "values": dict(values), **_places(parts)}
        _together(world, lambda: _publish(temporary, target, manifest) if world.is_first else None)
    finally:
        if world.is_first:
            shutil.rmtree(temporary, ignore_errors=True)


def load_together(folder: Path, world: World, own: Mapping[str, Tensor] | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or None; one of which a file is damaged is passed over. All processes call it alike.

    Where ``own`` has a tensor of this name that is spread, only its rows are read and come spread alike; all others
    come whole, in memory of the CPU.
    """
    names = world.share_json([path.name for path in _newest_first(folder)])
    for path in (folder / name for name in names):
        if all(_together(world, lambda path=path: _is_whole(path, world))):
            manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
            return Checkpoint(manifest["step"], _read(path, manifest["tensors"], own or {}), manifest["values"])
    return None


def _together(world: World, work: Callable[[], Any]) -> list[Any]:
    """Do a part of the work on every process; returns what each says (JSON). One that fails makes all of them fail."""
    error: DanluError | None = None
    said: Any = None
    try:
        said = work()
    except DanluError as caught:
        error = caught
    answers = world.gather_json({"said": said, "error": None if error is None else error.message})
    if error is not None:
        raise error
    for rank, answer in enumerate(answers):
        if answer["error"] is not None:
            raise ResourceError(f"Process {rank} could not save its part: {answer['error']}", "Its log says more.")
    return [answer["said"] for answer in answers]


def _make(temporary: Path) -> None:
    with disk_errors(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)


def _write(temporary: Path, tensors: Mapping[str, Tensor], world: World) -> dict[str, Any]:
    """Write this process's file; returns its name, its hash and which rows of which tensors it holds."""
    if not temporary.is_dir():
        raise ResourceError(
            f"{temporary.parent} is not the folder that the first process writes to.",
            "Put the work folder on a disk that all machines share.",
        )
    parts = _share(tensors, world)
    path = temporary / f"rank-{world.rank:05d}-of-{world.size:05d}.safetensors"
    with disk_errors(path):
        save_tensors({name: mine(tensor) for name, tensor in parts.items()}, path)
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        rows = {name: [*rows_of(tensor), list(tensor.shape)] for name, tensor in parts.items()}
        return {"file": path.name, "sha256": sha256_file(path), "rows": rows}


def _share(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this process writes: spread tensors, and whole ones so that all write about the same number of bytes."""
    kept = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    sizes = [0] * world.size
    for name in sorted(tensors.keys() - kept.keys(), key=lambda name: (-tensors[name].nbytes, name)):
        least = sizes.index(min(sizes))
        sizes[least] += tensors[name].nbytes
        if least == world.rank:
            kept[name] = tensors[name]
    return kept


def _places(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Hash of each file; of each tensor its shape, and which rows (first, how many) are in which file."""
    tensors: dict[str, Any] = {}
    for part in parts:
        for name, (start, count, shape) in part["rows"].items():
            if count:
                tensors.setdefault(name, {"shape": shape, "parts": []})["parts"].append([part["file"], start, count])
    return {"files": {part["file"]: part["sha256"] for part in parts}, "tensors": tensors}


def _publish(temporary: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    with disk_errors(target):
        write_json(temporary / _MANIFEST, manifest)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        sync_folder(target.parent)
    for old in _newest_first(target.parent)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if path.is_dir()), reverse=True)


def _is_whole(path: Path, world: World) -> bool:
    """Whether the manifest can be read and this process's share of the files has the hashes it tells."""
    try:
        files = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["files"]
        mine_to_check = sorted(files.items())[world.rank :: world.size]
        return all(sha256_file(path / name) == digest for name, digest in mine_to_check)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _read(path: Path, places: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, or this process's rows of it."""
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for name, place in places.items():
            for file, _, _ in place["parts"]:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(path / file, framework="pt"))
            other = own.get(name)
            if other is None or not is_sharded(other) or list(other.shape) != place["shape"]:
                tensors[name] = _rows(name, place, files, 0, place["shape"][0] if place["shape"] else 1)
            else:
                start, count = rows_of(other)
                tensors[name] = of_rows(_rows(name, place, files, start, count).to(other.device), other)
    return tensors


def _rows(name: str, place: Mapping[str, Any], files: Mapping[str, Any], start: int, count: int) -> Tensor:
    """Rows ``start`` to ``start + count`` of a tensor, from all files that have some of them."""
    if not place["shape"]:
        return files[place["parts"][0][0]].get_tensor(name)
    found: list[Tensor] = []
    for file, first, here in sorted(place["parts"], key=lambda part: part[1]):
        low, high = max(start, first), min(start + count, first + here)
        if low < high:
            found.append(files[file].get_slice(name)[low - first : high - first])
    if not found:
        return files[place["parts"][0][0]].get_slice(name)[0:1][:0]
    return torch.cat(found)
