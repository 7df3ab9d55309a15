import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.pth import read_pth


def state() -> dict[str, Tensor]:
    """Every kind of number, views of one storage, a scalar, and an empty tensor."""
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    return OrderedDict(
        whole=base,
        turned=base.t(),
        part=base[2:4, 1::2],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.randn(3)),
        **{str(kind): (10 * torch.randn(4)).to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(kind): torch.arange(4).to(kind) for kind in (torch.int64, torch.int32, torch.int8, torch.uint8)},
        flags=torch.tensor([True, False]),
    )


def save(value: Any, path: Path, *, is_zip: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": dict(s)}])
def test_both_forms_of_file_are_read_as_torch_reads_them(tmp_path: Path, is_zip: bool, wrap: Any) -> None:
    path = save(wrap(state()), tmp_path / "model.pth", is_zip=is_zip)
    found = read_pth(path)
    assert found.keys() == state().keys()
    for name, tensor in state().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_state_of_a_module_is_read_with_its_notes_on_versions(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = read_pth(save(net.state_dict(), tmp_path / "model.pth", is_zip=True))
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


class Evil:
    """What a hostile file asks whoever unpickles it to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside tensors", "as a name"])
def test_a_program_in_a_file_is_never_run(tmp_path: Path, is_zip: bool, place: str) -> None:
    mark = tmp_path / "it ran"
    value: Any = {"alone": Evil(mark), "beside tensors": {**state(), "x": Evil(mark)}, "as a name": {Evil(mark): 1}}
    path = save(value[place], tmp_path / "model.pth", is_zip=is_zip)
    with pytest.raises(ModelError, match=r"cannot be read without running it: it (calls|uses) .*safetensors first"):
        read_pth(path)
    assert not mark.exists()


def test_more_than_tensors_is_refused(tmp_path: Path) -> None:
    path = save({"weight": torch.zeros(2), "optimizer": {"lr": 0.1}}, tmp_path / "model.pth", is_zip=True)
    with pytest.raises(ModelError, match="is not a whole PyTorch checkpoint: 'optimizer' is not a tensor"):
        read_pth(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, is_zip: bool) -> None:
    path = save(state(), tmp_path / "model.pth", is_zip=is_zip)
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match="is not a whole PyTorch checkpoint"):
            read_pth(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for content in (b"", b"hello", pickle.dumps([1, 2])):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"is not a whole PyTorch checkpoint|cannot be read without running it"):
            read_pth(path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = save({"weight": torch.zeros(1000)}, tmp_path / "model.pth", is_zip=False)
    count = (1000).to_bytes(2, "little")
    content = path.read_bytes()
    shape = content.rindex(b"M" + count)  # the last place that says 1000 before the numbers: the tensor's shape
    path.write_bytes(content[: shape + 1] + (60000).to_bytes(2, "little") + content[shape + 3 :])
    with pytest.raises(ModelError, match="is not a whole PyTorch checkpoint"):
        read_pth(path)
