"""Checkpoints that several processes write: whole or absent, and readable by any number of them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from danlu.core.errors import ResourceError
from danlu.train.checkpoint import load_together, save_together
from danlu.train.world import World
from tests.train.rank_work import lines, make
from tests.train.ranks import run_ranks

ALONE = World(device=torch.device("cpu"))
TENSORS = {"a": torch.arange(6.0).view(3, 2), "step": torch.tensor(7.0), "half": torch.ones(2, dtype=torch.bfloat16)}


def test_one_process_reads_what_it_wrote(tmp_path: Path):
    save_together(tmp_path, 3, TENSORS, {"loss": 1.5}, ALONE)
    found = load_together(tmp_path, ALONE)
    assert found is not None
    assert (found.step, found.values) == (3, {"loss": 1.5})
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_folder_without_checkpoints_has_none(tmp_path: Path):
    assert load_together(tmp_path, ALONE) is None
    assert load_together(tmp_path / "none", ALONE) is None


def test_the_two_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 10):
        save_together(tmp_path, step, TENSORS, {}, ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("damage", ["short", "flipped", "missing", "manifest", "half"])
def test_a_damaged_one_is_passed_over(damage: str, tmp_path: Path):
    for step in (1, 2):
        save_together(tmp_path, step, TENSORS, {}, ALONE)
    newest = tmp_path / "step-00000002"
    (file,) = newest.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "short":
        file.write_bytes(data[:-3])
    elif damage == "flipped":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (newest / "checkpoint.json").write_text("{")
    else:
        newest.rename(tmp_path / ".step-00000002.tmp")  # killed before it was published
    found = load_together(tmp_path, ALONE)
    assert found is not None
    assert found.step == 1


def test_what_is_not_torchs_own_format_can_be_read_without_pickle(tmp_path: Path):
    save_together(tmp_path, 1, TENSORS, {}, ALONE)
    names = sorted(path.name for path in (tmp_path / "step-00000001").iterdir())
    assert names == ["checkpoint.json", "rank-00000-of-00001.safetensors"]
    manifest = json.loads((tmp_path / "step-00000001" / "checkpoint.json").read_text())
    assert manifest["tensors"]["a"] == {"shape": [3, 2], "parts": [["rank-00000-of-00001.safetensors", 0, 3]]}


def test_three_processes_read_what_one_wrote(tmp_path: Path):
    network = make("decoder").network
    torch.manual_seed(5)
    state = {name: torch.randn_like(parameter) for name, parameter in network.named_parameters()}
    save_together(tmp_path, 4, state, {}, ALONE)
    ended = run_ranks(3, "read_one", str(tmp_path))
    assert [process.status for process in ended] == [0, 0, 0], ended
    (answer, *_) = lines([process.output for process in ended])
    assert answer["sum"] == pytest.approx(sum(float(t.double().sum()) for t in state.values()))


def test_when_one_process_cannot_write_all_say_so_and_the_last_checkpoint_stays(tmp_path: Path):
    ended = run_ranks(2, "fail_to_write", str(tmp_path))
    assert [process.status for process in ended] == [0, 0], ended
    first, second = lines([process.output for process in ended])
    assert first["error"].startswith("Process 1 could not save its part: ")
    assert "is not the folder that the first process writes to" in second["error"]
    assert "Put the work folder on a disk that all machines share." in second["error"]
    found = load_together(tmp_path, ALONE)
    assert found is not None
    assert found.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        save_together(tmp_path / "file", 1, TENSORS, {}, ALONE)


def test_what_is_half_written_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_together(tmp_path, 5, TENSORS, {}, ALONE)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_together(tmp_path, 10, TENSORS, {}, ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005"]


def test_a_full_disk_says_so_and_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_together(tmp_path, 5, TENSORS, {}, ALONE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .* could not be written"):
        save_together(tmp_path, 10, TENSORS, {}, ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005"]
