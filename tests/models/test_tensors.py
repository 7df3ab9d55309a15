from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from danlu.core.errors import ResourceError
from danlu.models.tensors import save_tensors


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4), "turned": torch.rand(3, 4).t(), "small": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors({**tensors, "trained": torch.nn.Parameter(torch.ones(1))}, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert found["trained"].tolist() == [1.0]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("danlu.models.tensors.save_file", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .*x\.safetensors could not be written"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors")


def test_who_may_read_the_folder_may_read_the_file(tmp_path: Path) -> None:
    for mode in (0o700, 0o755):
        tmp_path.chmod(mode)
        save_tensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
        assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file/x\.safetensors cannot be written: Not a directory"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "file" / "x.safetensors")
