"""ResNet and MobileNetV2 compute what transformers computes, and give back what they took."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from danlu.models.load import load_model
from danlu.models.save import save_model
from tests.models.case import Case, save_peer
from tests.models.cases.vision import CONVNETS

pytestmark = pytest.mark.usefixtures("one_thread")
Saved = tuple[Case, PreTrainedModel, Path]


@pytest.fixture(scope="module", params=CONVNETS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    case, folder = CONVNETS[request.param], tmp_path_factory.mktemp(request.param)
    peer = case.make()
    yield case, peer, save_peer(peer, folder)
    shutil.rmtree(folder)


def answers(case: Case, folder: Path) -> list[Tensor]:
    return case.compare.ours(load_model(folder, precision="fp32"), case.compare.rows(case))


def test_a_batch_answers_as_in_transformers_and_as_each_image_alone(saved: Saved) -> None:
    case, peer, folder = saved
    rows, model = case.compare.rows(case), load_model(folder, precision="fp32")
    ours = case.compare.ours(model, rows)
    torch.testing.assert_close(ours, case.compare.theirs(case, peer, rows, "right"), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, [case.compare.ours(model, [row])[0] for row in rows], atol=1e-5, rtol=1e-5)


def test_saved_again_every_tensor_is_the_same_and_transformers_loads_them(saved: Saved, tmp_path: Path) -> None:
    case, peer, folder = saved
    model = load_model(folder, precision="fp32")
    case.compare.ours(model, case.compare.rows(case))  # folded weights must not get into what is saved
    save_model(model, tmp_path)
    before, after = model.network.state_dict(), load_model(tmp_path, precision="fp32").network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, found = type(peer).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    rows = case.compare.rows(case)
    first, second = (case.compare.theirs(case, each, rows, "right") for each in (peer, again.eval()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
