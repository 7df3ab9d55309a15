"""What a teacher says: the same asked in every step and kept on disk, kept once, and never mistaken for another's."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import TrainError
from danlu.core.events import Events
from danlu.models.model import Model
from danlu.text.chat import RenderedChat
from danlu.train import teacher as subject
from danlu.train.loss import collate
from danlu.train.losses.distil import DistilConfig, TopLogprobs, soft_rows, top_logprobs
from danlu.train.run import Job
from danlu.train.teacher import KeptTeacher, LiveTeacher, keep_answers, read_states, weights_hash

from ..models.peer import some_ids
from .chats import fresh

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [RenderedChat(some_ids(n, seed=n), [i > 2 for i in range(n)]) for n in (9, 20, 5, 14, 30)]
V = 400


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PART_TOKENS", 32)


@pytest.fixture
def live(tiny_folder: Path) -> LiveTeacher:
    return LiveTeacher(fresh(tiny_folder), V)


def job_in(folder: Path) -> Job:
    return Job(work=folder, log_path=folder / "curve.jsonl", events=Events(), seed=0)


def keep(live: LiveTeacher, root: Path, k: int = V, temperature: float = 1.0) -> KeptTeacher:
    return keep_answers(live, ROWS, k, temperature, root, job_in(root))


@pytest.mark.parametrize("rows", [[0], [1, 4, 0], [2, 3], [0, 1, 2, 3, 4]])
def test_all_tokens_kept_is_the_teacher_itself(live: LiveTeacher, tmp_path: Path, rows: list[int]) -> None:
    kept, batch = keep(live, tmp_path, temperature=2.0), collate([ROWS[row] for row in rows])
    head, hidden = live.say(rows, batch).answer  # pyright: ignore
    student = torch.randn(len(batch.targets), V, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 0.3, 1.0):
        config = DistilConfig(beta=beta, temperature=2.0)
        exact = soft_rows(student, head(hidden), config)
        answer = kept.say(rows, batch).answer
        assert isinstance(answer, TopLogprobs)
        torch.testing.assert_close(soft_rows(student, answer, config), exact, rtol=1e-4, atol=1e-4)


def test_the_likeliest_tokens_are_kept_with_the_mass_of_the_rest(live: LiveTeacher, tmp_path: Path) -> None:
    kept, batch = keep(live, tmp_path, k=7), collate([ROWS[3], ROWS[1]])
    answer, said = kept.say([3, 1], batch).answer, live.say([3, 1], batch).answer
    assert isinstance(answer, TopLogprobs)
    assert isinstance(said, tuple)
    expected = top_logprobs(said[0](said[1]), 7)
    assert torch.equal(answer.ids, expected.ids)
    torch.testing.assert_close(answer.logprobs, expected.logprobs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.rest, expected.rest, rtol=1e-4, atol=1e-5)


def asked_rows(live: LiveTeacher) -> list[int]:
    """Grows by the tokens of each pass through the teacher."""
    seen: list[int] = []
    live.model.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


def test_it_is_asked_once(live: LiveTeacher, tmp_path: Path) -> None:
    seen = asked_rows(live)
    keep(live, tmp_path)
    assert sum(seen) == sum(len(row.ids) for row in ROWS)
    keep(live, tmp_path)
    assert sum(seen) == sum(len(row.ids) for row in ROWS)


def test_asking_goes_on_where_it_was_stopped(
    live: LiveTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, asked_rows(live)

    def dies(source: Any, target: Any) -> None:
        if "part-000002" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(subject.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        keep(live, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(subject, "PART_TOKENS", 32)
    before = len(seen)
    kept = keep(live, tmp_path)
    parts = sorted(path.name for path in kept.folder.glob("part-*"))
    assert before == 3  # two files were whole, the third was not
    assert len(seen) - before == len(parts) - 2
    whole = keep(live, tmp_path / "whole")
    assert [(whole.folder / name).read_bytes() for name in parts] == [
        (kept.folder / name).read_bytes() for name in parts
    ]


def other(rows: Sequence[RenderedChat]) -> list[RenderedChat]:
    return [RenderedChat([*rows[0].ids[:-1], (rows[0].ids[-1] + 1) % V], rows[0].is_answer), *rows[1:]]


def test_answers_of_another_teacher_about_other_rows_or_at_another_temperature_are_not_taken(
    live: LiveTeacher, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = keep(live, tmp_path).folder
    changed = fresh(tiny_folder)
    with torch.no_grad():
        changed.network.get_parameter("embedding.tokens.weight")[0, 0] += 0.001
    folders = {
        keep(LiveTeacher(changed, V), tmp_path).folder,
        keep_answers(live, other(ROWS), V, 1.0, tmp_path, job_in(tmp_path)).folder,
        keep(live, tmp_path, temperature=1.5).folder,
        keep(live, tmp_path, k=3).folder,
    }
    assert len(folders | {folder}) == 5
    assert keep(live, tmp_path).folder == folder


@pytest.mark.parametrize("damage", ["short", "gone", "other"])
def test_a_damaged_file_is_told(live: LiveTeacher, tmp_path: Path, damage: str) -> None:
    kept = keep(live, tmp_path)
    path = kept.folder / "part-000000.safetensors"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes((keep(live, tmp_path, k=3).folder / path.name).read_bytes())
    message = "does not fit the rows" if damage == "other" else "is damaged"
    with pytest.raises(TrainError, match=rf"part-000000\.safetensors {message}.* Remove .* to ask the teacher again"):
        kept.say([0], collate([ROWS[0]]))


def test_hidden_states_after_a_block_are_those_of_a_model_that_ends_there(live: LiveTeacher) -> None:
    batch = collate(ROWS[:3])
    network = live.model.network
    found = read_states(network, batch, (1, 0))
    assert network.stack.norm is not None
    torch.testing.assert_close(network.stack.norm(found.inner[0]), found.last)
    whole: list[Any] = []
    hook = network.stack.blocks[0].register_forward_hook(lambda _, __, output: whole.append(output))
    again = read_states(network, batch)
    hook.remove()
    torch.testing.assert_close(found.inner[1], whole[0][batch.predicts])
    assert again.inner == ()


def test_the_hash_is_of_every_number(tiny_folder: Path) -> None:
    one, two = fresh(tiny_folder), fresh(tiny_folder)
    assert weights_hash(one.network) == weights_hash(two.network)
    _nudge(two)
    assert weights_hash(one.network) != weights_hash(two.network)
    assert weights_hash(one.network.bfloat16()) != weights_hash(fresh(tiny_folder).network)


def _nudge(model: Model) -> None:
    with torch.no_grad():
        model.network.get_parameter("stack.norm.weight")[-1] += 1e-6
