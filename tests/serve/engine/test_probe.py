"""The number of threads follows from measured steps and is remembered."""

from pathlib import Path

import pytest

from danlu.serve.engine.probe import choose_threads, fastest, machine, num_cores


class Machine:
    """A model whose step takes ``seconds`` with so many threads; the first step of each takes ten times as long."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {int(name.removeprefix("t")): value for name, value in seconds.items()}
        self.now, self.steps = 0.0, []
        self.is_busy = False

    def step(self, count: int) -> None:
        self.now += self.seconds[count] * (1 if count in self.steps else 10)
        self.steps.append(count)

    def choose(self, cache: Path, model: str = "shape") -> int:
        return choose_threads(
            self.step, model, candidates=list(self.seconds), cache=cache, clock=lambda: self.now, is_busy=self.is_busy
        )  # fmt: skip


def test_more_threads_are_used_only_when_they_are_clearly_faster(tmp_path: Path) -> None:
    assert Machine(t1=0.010, t2=0.0098).choose(tmp_path / "a") == 1
    assert Machine(t1=0.010, t2=0.006).choose(tmp_path / "b") == 2
    assert fastest({1: 4.0, 2: 2.1, 4: 2.0, 8: 1.0}) == 8
    assert fastest({1: 4.0, 2: 2.1, 4: 2.05, 8: 2.04}) == 2


def test_the_answer_is_remembered_for_the_model_and_the_machine(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "threads.json"
    assert Machine(t1=0.010, t2=0.001).choose(cache) == 2
    again = Machine(t1=0.001, t2=0.010)
    assert again.choose(cache) == 2
    assert again.steps == []
    assert again.choose(cache, "another shape") == 1
    assert machine() in cache.read_text()


def test_what_was_measured_on_a_busy_machine_is_used_but_not_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Machine(t1=0.001, t2=0.010)
    busy.is_busy = True
    assert busy.choose(tmp_path / "c") == 1
    assert not (tmp_path / "c").exists()
    assert "The machine is busy: 1 threads seem to be fastest now" in caplog.text


def test_it_stops_at_its_budget(tmp_path: Path) -> None:
    slow = Machine(t1=0.2, t2=0.2)
    slow.choose(tmp_path / "c")
    assert len(slow.steps) == 4


def test_a_damaged_or_unwritable_memory_is_told_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "threads.json"
    cache.write_text("{nonsense")
    assert Machine(t1=0.010, t2=0.001).choose(cache) == 2
    assert "the number of threads is measured again" in caplog.text
    assert Machine(t1=1.0, t2=1.0).choose(cache) == 2, "mended"
    (tmp_path / "file").write_text("")
    assert Machine(t1=0.001, t2=0.010).choose(tmp_path / "file" / "threads.json") == 1
    assert "The number of threads is not remembered" in caplog.text


def test_one_core_needs_no_measurement(tmp_path: Path) -> None:
    assert Machine(t3=1.0).choose(tmp_path / "none") == 3
    assert num_cores() >= 1
