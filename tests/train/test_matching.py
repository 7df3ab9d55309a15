"""Blocks of a student held to those of its teacher."""

from pathlib import Path

import pytest
import torch

from danlu.models.load import load_model
from danlu.train.matching import Matching
from danlu.train.teacher import LiveTeacher

from ..models.peer import save_llama
from .chats import fresh

pytestmark = pytest.mark.usefixtures("one_thread")


def test_models_of_one_width_need_no_projection(tiny_folder: Path) -> None:
    student, teacher = fresh(tiny_folder), fresh(tiny_folder)
    matching = Matching(student, LiveTeacher(teacher, 400), is_cosine=False)
    assert (matching.mine, matching.theirs, matching.parameters()) == ((0, 1), (0, 1), {})
    states = [torch.randn(5, 4) for _ in range(4)]
    expected = sum((a - b).square().mean(dim=-1).sum() for a, b in zip(states[:2], states[2:], strict=True)) / 2
    torch.testing.assert_close(matching.distance(states[:2], states[2:]), expected)


def test_a_narrower_student_is_projected_and_left_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    student = fresh(tiny_folder)
    names = set(student.network.state_dict())
    save_llama(tmp_path / "wide", hidden_size=64, num_hidden_layers=4)
    teacher = LiveTeacher(load_model(tmp_path / "wide", precision="fp32"), 400)
    matching = Matching(student, teacher, is_cosine=True)
    assert matching.theirs == (1, 3)
    parameters = matching.parameters()
    assert {name: tuple(weight.shape) for name, weight in parameters.items()} == {
        "projections.0.weight": (64, student.config.width),
        "projections.1.weight": (64, student.config.width),
    }
    named = dict(student.network.named_parameters())
    assert all(named[name] is weight for name, weight in parameters.items())
    states = [torch.randn(5, student.config.width) for _ in range(2)]
    theirs = [state @ weight.t() for state, weight in zip(states, parameters.values(), strict=True)]
    assert float(matching.distance(states, theirs).detach()) == pytest.approx(0.0, abs=1e-5)
    matching.remove()
    assert set(student.network.state_dict()) == names
