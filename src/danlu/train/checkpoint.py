"""Checkpoints that are whole or absent: safetensors and JSON in a folder that is renamed into place.

Knows tensors and numbers by name, not what they mean. The last two are kept, so a damaged newest one costs little.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from danlu.core.files import disk_errors, sha256_file, sync_folder
from danlu.models.tensors import save_tensors

_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and numbers as they were after ``step`` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write ``folder``/step-N atomically, then remove all but the two newest."""
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    with disk_errors(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            save_tensors(tensors, temporary / "tensors")
            digest = sha256_file(temporary / "tensors")
            text = json.dumps({"step": step, "sha256": digest, "values": dict(values)})
            (temporary / "checkpoint.json").write_text(text, encoding="utf-8")
            for name in ("tensors", "checkpoint.json"):
                with open(temporary / name, "rb") as handle:
                    os.fsync(handle.fileno())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            sync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in _newest_first(folder)[2:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None. One whose hash does not match is passed over."""
    for path in _newest_first(folder):
        try:
            head = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
            if sha256_file(path / "tensors") != head["sha256"]:
                continue
            return Checkpoint(head["step"], load_file(path / "tensors"), head["values"])
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob(f"{_PREFIX}*") if p.is_dir()), reverse=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Per-parameter state as named tensors: ``optimizer.<index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; groups and rates stay as they are."""
    named = [(*name.split(".")[1:], t) for name, t in tensors.items() if name.startswith("optimizer.")]
    named.sort(key=lambda item: int(item[0]))
    state = {
        int(index): {name: tensor for _, name, tensor in items}
        for index, items in itertools.groupby(named, key=lambda item: item[0])
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
