import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.core.errors import ResourceError
from danlu.train.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(4.0)}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "work", 7, {**TENSORS, "view": TENSORS["a"].t()}, {"lines": 3, "skipped": 0})
    checkpoint = load_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.values) == (7, {"lines": 3, "skipped": 0})
    assert checkpoint.tensors["b"].dtype == torch.bfloat16
    for name, tensor in {**TENSORS, "view": TENSORS["a"].t()}.items():
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nothere") is None


def test_the_two_newest_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (5, 10, 100, 95):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert steps(tmp_path) == ["step-00000095", "step-00000100"]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 100


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"a": torch.zeros(2)}, {})
    save_checkpoint(tmp_path, 5, {"a": torch.ones(2)}, {})
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors["a"].tolist() == [1.0, 1.0]


def flip_a_byte(folder: Path) -> None:
    path = folder / "tensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "tensors"
    path.write_bytes(path.read_bytes()[:-10])


def lose_tensors(folder: Path) -> None:
    (folder / "tensors").unlink()


def cut_head(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"step": 10, "sha')


def empty_head(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{}")


@pytest.mark.parametrize("damage", [flip_a_byte, cut, lose_tensors, cut_head, empty_head])
def test_a_damaged_newest_one_is_passed_over(tmp_path: Path, damage) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {"lines": 5})
    save_checkpoint(tmp_path, 10, TENSORS, {"lines": 10})
    damage(tmp_path / "step-00000010")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.values["lines"]) == (5, 5)
    damage(tmp_path / "step-00000005")
    assert load_checkpoint(tmp_path) is None


def test_what_is_half_written_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 10, TENSORS, {})
    assert steps(tmp_path) == ["step-00000005"]


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})
    (tmp_path / ".step-00000010.999.tmp").mkdir()
    (tmp_path / ".step-00000010.999.tmp" / "tensors").write_bytes(b"half")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 5


def test_a_full_disk_says_so_and_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .*step-00000010 could not be written"):
        save_checkpoint(tmp_path, 10, TENSORS, {})
    assert steps(tmp_path) == ["step-00000005"]


def test_an_optimiser_goes_on_as_if_it_had_never_stopped() -> None:
    def trained(parameters: list[nn.Parameter], optimizer: torch.optim.AdamW, count: int) -> None:
        for step in range(count):
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.sin(parameter.detach() * (number + 1) + step)
            optimizer.step()

    def start() -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        parameters = [nn.Parameter(torch.full((3,), float(n))) for n in range(12)]  # more than ten: order of names
        return parameters, torch.optim.AdamW(parameters, lr=0.1, fused=True)

    whole, optimizer = start()
    trained(whole, optimizer, 3)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    values = [parameter.detach().clone() for parameter in whole]
    trained(whole, optimizer, 3)

    again, resumed = start()
    with torch.no_grad():
        for parameter, value in zip(again, values, strict=True):
            parameter.copy_(value)
    load_optimizer_tensors(resumed, {**kept, "an.adapter": torch.zeros(1)})
    trained(again, resumed, 3)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    assert all(state["step"] == 6 for state in resumed.state.values())


def test_the_numbers_are_plain_json(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {"lines": 5})
    head = json.loads((tmp_path / "step-00000005" / "checkpoint.json").read_text())
    assert set(head) == {"step", "sha256", "values"}
