"""What a teacher says of rows: asked in every step, or asked once and its likeliest tokens kept on disk.

Kept answers lie in safetensors files of some thousand tokens each, read through a memory map. Their folder is named by
a hash of the teacher's weights, the rows and the settings, so answers of another teacher are never taken; a file is
whole or absent, so asking goes on where it was stopped. Knows no student but its vocabulary size, and no loss.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from danlu.core.errors import TrainError
from danlu.core.files import sha256_json, sync_folder
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.model import Model
from danlu.models.network import Network
from danlu.models.tensors import save_tensors
from danlu.text.chat import RenderedChat
from danlu.train.loss import PackedBatch, collate
from danlu.train.losses.distil import TopLogprobs, top_logprobs
from danlu.train.losses.tokens import Head, rows_at_a_time
from danlu.train.settings import Job

PART_TOKENS = 4096
"""Tokens of the rows of one file, which the teacher reads together."""


@dataclass(frozen=True)
class States:
    """Hidden states at the supervised places of a batch."""

    last: Tensor
    """(M, D) after the last norm: what the head reads."""
    inner: tuple[Tensor, ...] = ()
    """(M, D) after each block that was asked for."""


@dataclass(frozen=True)
class Said:
    """What a teacher said of a batch."""

    answer: TopLogprobs | tuple[Head, Tensor]
    """The kept best, or a head and the hidden states it reads: all that the loss needs."""
    inner: tuple[Tensor, ...] = ()
    """(M, D') after each block that was asked for."""


class Teacher(Protocol):
    """Who can be asked about rows by their numbers."""

    def say(self, rows: Sequence[int], batch: PackedBatch, layers: Sequence[int] = ()) -> Said:
        """What it says of ``batch``, which holds these rows in this order."""
        ...


class LiveTeacher:
    """Asked in every step. Its answers are cut to the student's ``vocabulary_size``."""

    def __init__(self, model: Model, vocabulary_size: int) -> None:
        self.model = model
        self.vocabulary_size = vocabulary_size
        model.network.requires_grad_(False).eval()

    @torch.no_grad()
    def say(self, rows: Sequence[int], batch: PackedBatch, layers: Sequence[int] = ()) -> Said:
        """See ``Teacher``."""
        states = read_states(self.model.network, batch, layers)
        return Said((self.logits, states.last), states.inner)

    def logits(self, hidden: Tensor) -> Tensor:
        """(m, D) → (m, V)."""
        return self.model.network.logits(hidden)[:, : self.vocabulary_size]


class KeptTeacher:
    """Its ``k`` likeliest tokens at every supervised place of ``items``, read from files."""

    def __init__(self, folder: Path, items: Sequence[RenderedChat], k: int, temperature: float, device: Any) -> None:
        self.folder = folder
        self._k, self._temperature, self._device = k, temperature, device
        self._counts = [sum(item.is_answer[1:]) for item in items]
        self._places: list[tuple[int, int]] = []
        for part, members in enumerate(_parts(items)):
            starts = itertools.accumulate((self._counts[row] for row in members), initial=0)
            self._places += [(part, start) for start in starts][:-1]
        self._files: dict[int, Any] = {}

    def say(self, rows: Sequence[int], batch: PackedBatch, layers: Sequence[int] = ()) -> Said:
        """See ``Teacher``; has no hidden states."""
        assert not layers, "kept answers have no hidden states"
        assert sum(self._counts[row] for row in rows) == len(batch.targets), "other rows than were asked about"
        found = [self._read(*self._places[row], self._counts[row]) for row in rows]
        logprobs, ids, rest = (torch.cat(parts).to(self._device) for parts in zip(*found, strict=True))
        return Said(TopLogprobs(logprobs, ids.long(), rest, self._temperature))

    def _read(self, part: int, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        path = _path(self.folder, part)
        try:
            if part not in self._files:
                self._files[part] = safe_open(path, framework="pt")
            file, rows = self._files[part], slice(start, start + count)
            read = [file.get_slice(name)[rows] for name in ("logprobs", "ids", "rest")]
        except (SafetensorError, FileNotFoundError) as error:
            raise TrainError(
                f"{path} is damaged: {error}.", f"Remove {self.folder} to ask the teacher again."
            ) from error
        if any(len(tensor) != count for tensor in read) or read[0].shape[1] != self._k:
            raise TrainError(f"{path} does not fit the rows.", f"Remove {self.folder} to ask the teacher again.")
        return read[0], read[1], read[2]


def keep_answers(
    teacher: LiveTeacher, items: Sequence[RenderedChat], k: int, temperature: float, root: Path, job: Job
) -> KeptTeacher:
    """Ask about ``items`` once and keep the ``k`` likeliest tokens under ``root``; what is there is not asked again.

    The processes of a run share the work, and the folder.
    """
    k = min(k, teacher.vocabulary_size)
    facts = {
        "teacher": weights_hash(teacher.model.network),
        "vocabulary_size": teacher.vocabulary_size,
        "rows": [[item.ids, item.is_answer] for item in items],
        "k": k,
        "temperature": temperature,
        "part_tokens": PART_TOKENS,
    }
    folder = root / sha256_json(facts)[:24]
    folder.mkdir(parents=True, exist_ok=True)
    parts = _parts(items)
    missing = [number for number in range(len(parts)) if not _path(folder, number).is_file()]
    job.world.wait_for_all()  # everybody has looked before anybody writes
    mine = missing[job.world.rank :: job.world.size]
    with job.events.bar("teacher", total=len(mine), unit="file") as bar:
        for number in mine:
            _write(teacher, [items[row] for row in parts[number]], k, temperature, _path(folder, number))
            bar.advance(1)
    job.world.wait_for_all()
    return KeptTeacher(folder, items, k, temperature, teacher.model.device)


def read_states(network: Network, batch: PackedBatch, layers: Sequence[int] = ()) -> States:
    """Run ``batch``; hidden states at the supervised places, also those after the blocks ``layers``."""
    device = network.device
    seen: dict[int, Tensor] = {}
    places = batch.predicts.to(device)

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            seen[layer] = output.index_select(0, places)

        return hook

    hooks = [network.stack.blocks[layer].register_forward_hook(keep(layer)) for layer in set(layers)]
    try:
        positions = row_positions(batch.lengths, batch.shared).to(device)
        hidden = network(batch.ids.to(device), positions, PackedAttend(batch.lengths, device, batch.shared))  # (N, D)
    finally:
        for hook in hooks:
            hook.remove()
    return States(hidden.index_select(0, places), tuple(seen[layer] for layer in layers))


def weights_hash(network: nn.Module) -> str:
    """Hex sha256 of all weights, their names and number types."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _write(teacher: LiveTeacher, items: Sequence[RenderedChat], k: int, temperature: float, path: Path) -> None:
    """One file, whole or absent."""
    hidden, head = read_states(teacher.model.network, collate(items)).last, teacher.model.network.head
    assert head is not None
    found = [top_logprobs(teacher.logits(some), k, temperature) for some in hidden.split(rows_at_a_time(head))]
    tensors = {
        "logprobs": torch.cat([one.logprobs for one in found]).float(),
        "ids": torch.cat([one.ids for one in found]).int(),
        "rest": torch.cat([one.rest for one in found]).float(),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    save_tensors(tensors, temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _parts(items: Sequence[RenderedChat]) -> list[list[int]]:
    """Rows in order, in groups of at most ``PART_TOKENS`` tokens where rows allow it."""
    parts: list[list[int]] = []
    room = 0
    for row, item in enumerate(items):
        if not parts or len(item.ids) > room:
            parts.append([])
            room = PART_TOKENS
        parts[-1].append(row)
        room -= len(item.ids)
    return parts


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.safetensors"
