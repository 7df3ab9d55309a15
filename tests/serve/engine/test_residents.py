"""Models that come when they are asked for, and go when others need their room."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.core.errors import ModelError, OverloadedError, RequestError
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.serve.engine import residents
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.engine.request import TokenizeRequest
from danlu.serve.engine.resident import Resident, load_resident
from danlu.serve.engine.spec import ModelSpec
from tests.serve.engine.hearing import Listener, ask, eventually, submit
from tests.tiny import write_tiny

SHORT = GenerateOptions(max_tokens=4, ignore_eos=True)
ENDLESS = GenerateOptions(max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: ModelSpec(name=name, path=str(write_tiny(root / name, seed=seed)), precision="fp32")
        for seed, name in enumerate("abc")
    }


@pytest.fixture
def start(folders: dict[str, ModelSpec]) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(names: str = "ab", **config: object) -> Engine:
        settings = {"cache_tokens": 2048, "max_rows": 4, "max_resident_models": 1, **config}
        engine = Engine({name: folders[name] for name in names}, EngineConfig(**settings))  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


def loaded(engine: Engine) -> list[str]:
    return [model.name for model in engine.models() if model.is_loaded]


class Gate:
    """Holds up loading until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        self.error = error
        self.names: list[str] = []
        monkeypatch.setattr(residents, "load_resident", self.load)

    def load(self, spec: ModelSpec, name: str, config: EngineConfig, promised_bytes: int) -> Resident:
        self.names.append(name)
        self.begun.set()
        assert self.opened.wait(5)
        if self.error is not None:
            raise self.error
        return load_resident(spec, name, config, promised_bytes)


def test_a_model_is_loaded_by_the_first_request_for_it_and_takes_the_place_of_another(start: Callable[..., Engine]):
    engine = start()
    assert loaded(engine) == ["a"]
    texts = {name: submit(engine, ask("navy dress", SHORT, model=name)).text() for name in "abab"}
    assert loaded(engine) == ["b"]
    with start("b") as alone:
        assert submit(alone, ask("navy dress", SHORT, model="b")).text() == texts["b"] != texts["a"]


def test_what_is_told_of_a_model_is_the_same_before_and_after_it_is_loaded(start: Callable[..., Engine]):
    engine = start()
    before = {model.name: model for model in engine.models()}["b"]
    assert (before.is_loaded, before.abilities, before.context_length) == (False, {"write"}, 512)
    submit(engine, ask("navy", SHORT, model="b")).last()
    after = {model.name: model for model in engine.models()}
    assert (after["b"].is_loaded, after["a"].is_loaded) == (True, False)
    assert {**vars(before), "is_loaded": True, "created": 0} == {**vars(after["b"]), "created": 0}


def test_nothing_is_left_of_a_model_that_went(start: Callable[..., Engine]):
    engine = start()
    gone = weakref.ref(engine._residents.loaded[0].model.network)
    submit(engine, ask("navy", SHORT, model="a")).last()
    submit(engine, ask("navy", SHORT, model="b")).last()
    assert eventually(lambda: gone() is None)


def test_everything_is_loaded_where_there_is_room(start: Callable[..., Engine]):
    assert loaded(start("abc", max_resident_models=None)) == ["a", "b", "c"]
    assert loaded(start("abc", max_resident_models=2)) == ["a", "b"]


def test_the_model_that_was_not_used_for_the_longest_makes_room(start: Callable[..., Engine]):
    engine = start("abc", max_resident_models=2)
    for name in "ba":
        submit(engine, ask("navy", SHORT, model=name)).last()
    submit(engine, ask("navy", SHORT, model="c")).last()
    assert loaded(engine) == ["a", "c"]


def test_requests_go_on_while_another_model_is_loaded_and_nothing_looks_hung(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = start("abc", max_resident_models=2)
    gate = Gate(monkeypatch)
    waiting = submit(engine, ask("navy", SHORT, model="c"))
    assert gate.begun.wait(5)
    for name in set("ab") & set(loaded(engine)):
        assert len(submit(engine, ask("navy", SHORT, model=name)).ids()) == 4
    status = engine.status()
    assert status.models["c"].waiting == 1
    assert status.last_step_age_s == 0.0
    gate.opened.set()
    assert len(waiting.ids()) == 4


def test_a_running_answer_is_finished_before_its_model_goes(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(residents, "_LEAST_S", 0.0)
    engine = start()
    running = submit(engine, ask("navy", ENDLESS, model="a"))
    assert running.begun.wait(5)
    other = submit(engine, ask("navy", SHORT, model="b"))
    late = submit(engine, ask("navy", SHORT, model="a"))
    assert len(running.ids()) == 400
    assert len(other.ids()) == 4
    assert len(late.ids()) == 4, "it waits until its model is back"


def test_what_waits_for_a_model_hears_its_deadline_and_its_cancel(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = start()
    gate = Gate(monkeypatch)
    late = submit(engine, ask("navy", SHORT, model="b", timeout_s=0.05))
    gone = submit(engine, ask("navy", SHORT, model="b"))
    stays = submit(engine, ask("navy", SHORT, model="b"))
    gone.ticket.cancel()
    errors = [listener.error() for listener in (late, gone)]
    assert [error.status for error in errors if isinstance(error, RequestError)] == [504, 499]
    gate.opened.set()
    assert len(stays.ids()) == 4


def test_no_more_than_a_queue_of_requests_waits_for_a_model(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = start(max_waiting=2)
    gate = Gate(monkeypatch)
    waiting = [submit(engine, ask("navy", SHORT, model="b")) for _ in range(2)]
    refused = submit(engine, ask("navy", SHORT, model="b")).error()
    assert isinstance(refused, OverloadedError)
    assert str(refused) == "'b' is being loaded, and 2 requests wait for it. Try again after Retry-After seconds."
    gate.opened.set()
    assert all(len(listener.ids()) == 4 for listener in waiting)


def test_a_model_that_cannot_be_loaded_is_told_to_all_who_wait_and_tried_again(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = start()
    gate = Gate(monkeypatch, ModelError("model.safetensors is damaged.", "Fetch it again."))
    waiting = [submit(engine, ask("navy", SHORT, model="b")) for _ in range(2)]
    gate.opened.set()
    for listener in waiting:
        error = listener.error()
        assert isinstance(error, RequestError)
        assert (error.status, str(error)) == (
            503, "'b' cannot be loaded: model.safetensors is damaged. Fetch it again.",
        )  # fmt: skip
    gate.error = None
    assert len(submit(engine, ask("navy", SHORT, model="b")).ids()) == 4
    gate.error = ValueError("a bug")
    error = submit(engine, ask("navy", SHORT, model="a")).error()
    assert str(error) == "'a' cannot be loaded. The server's log says why."


def test_a_model_that_can_never_fit_says_what_it_takes_and_nobody_goes_for_it(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = start()
    monkeypatch.setattr(residents, "free_bytes", lambda: -(2**40))
    error = submit(engine, ask("navy", SHORT, model="b")).error()
    assert isinstance(error, RequestError)
    assert error.status == 503
    assert "'b' cannot be loaded: 'b' takes about " in str(error)
    assert "Serve it with --scheme int8" in str(error)
    assert loaded(engine) == ["a"]


def test_memory_decides_where_no_number_is_set(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(residents, "free_bytes", lambda: 0)
    engine = start(max_resident_models=None)
    assert loaded(engine) == ["a"]
    assert "'b' is loaded when it is asked for: it takes about 0 MiB, and 0 MiB are free." in caplog.text


def test_a_limit_of_models_is_told_when_it_is_why_one_waits(
    start: Callable[..., Engine], caplog: pytest.LogCaptureFixture
):
    start()
    assert "'b' is loaded when it is asked for: max_resident_models is 1." in caplog.text


def test_a_model_that_nobody_uses_is_unloaded_after_a_while(start: Callable[..., Engine]):
    engine = start("ab", max_resident_models=None, idle_unload_s=0.05)
    assert eventually(lambda: not loaded(engine))
    assert len(submit(engine, ask("navy", SHORT, model="a")).ids()) == 4
    assert eventually(lambda: not loaded(engine))


def test_other_questions_wait_for_the_model_too(start: Callable[..., Engine]):
    engine = start()
    listener = Listener()
    engine.submit(TokenizeRequest(model="b", prompt="navy"), listener)
    assert listener.ended.wait(5)
    assert loaded(engine) == ["b"]


def test_models_that_came_in_memory_stay(folders: dict[str, ModelSpec]):
    model = load_model(Path(folders["a"].path))
    config = EngineConfig(cache_tokens=2048, max_rows=4, max_resident_models=1, idle_unload_s=0.01)
    with Engine({"mine": model, "b": folders["b"]}, config) as engine:
        error = submit(engine, ask("navy", SHORT, model="b")).error()
        assert "no more than" in str(error)
        assert loaded(engine) == ["mine"]


def test_stopping_ends_what_waits_for_a_model(start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch):
    engine = start()
    gate = Gate(monkeypatch)
    waiting = submit(engine, ask("navy", SHORT, model="b"))
    assert gate.begun.wait(5)
    stopping = threading.Thread(target=engine.stop, args=(0.0,))
    stopping.start()
    error = waiting.error()
    assert isinstance(error, RequestError)
    assert error.status == 503
    gate.opened.set()
    stopping.join(5)
    assert not stopping.is_alive()


def test_a_drain_waits_for_models_that_are_on_their_way(start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch):
    engine = start()
    gate = Gate(monkeypatch)
    waiting = submit(engine, ask("navy", SHORT, model="b"))
    assert gate.begun.wait(5)
    stopping = threading.Thread(target=engine.stop, args=(30.0,))
    stopping.start()
    time.sleep(0.02)
    gate.opened.set()
    stopping.join(5)
    assert not stopping.is_alive()
    assert len(waiting.ids()) == 4


def test_loading_and_unloading_under_load_answers_everybody(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(residents, "_LEAST_S", 0.0)
    engine = start("abc")
    listeners = [submit(engine, ask("navy", SHORT, model="abc"[number % 3])) for number in range(30)]
    assert all(len(listener.ids()) == 4 for listener in listeners)
    assert len(loaded(engine)) == 1
    assert not caplog.records


def test_a_name_that_is_not_served_is_told_the_names_that_are(start: Callable[..., Engine]):
    listener = Listener()
    start().submit(TokenizeRequest(model="d", prompt="x"), listener)
    assert str(listener.error()) == "There is no model 'd'. This server has 'a', 'b'."
