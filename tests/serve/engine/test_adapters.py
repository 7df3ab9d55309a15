"""Adapters per request: as merged weights answer, side by side, swapped and unloaded while requests run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import ConfigError, RequestError
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.engine.request import AdapterRequest, ReadRequest, Reply
from danlu.train.adapter import load_adapter, save_adapter
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.merge import merge_lora
from tests.serve.engine.hearing import Gate, Listener, ask, eventually, is_idle, submit
from tests.tiny import write_tiny
from tests.train.adapters import move

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]
PROMPT = "The navy silk dress has pockets and a collar, and its soft lining keeps you warm."
SHORT = GenerateOptions(max_tokens=24, ignore_eos=True)
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    """Four adapters of the tiny model."""
    root, found = tmp_path_factory.mktemp("adapters"), dict[str, Path]()
    for number, name in enumerate(NAMES, start=1):
        model, config = load_model(tiny_folder, precision="fp32"), LoraConfig(rank=2 * number, alpha=4.0)
        torch.manual_seed(number)
        move(add_lora(model, config), 0.4)
        found[name] = root / name
        save_adapter(model, found[name], config, base="tiny")
    return found


@pytest.fixture(scope="module")
def expected(folders: Mapping[str, Path], tiny_folder: Path, one_thread: None) -> dict[str, tuple[int, ...]]:
    """What merged weights write after the prompt; of the base under "model"."""
    found: dict[str, tuple[int, ...]] = {}
    for name in ("model", *NAMES):
        model = load_model(tiny_folder, precision="fp32")
        if name != "model":
            load_adapter(model, folders[name])
            merge_lora(model)
        found[name] = LoadedModel(model).generate([PROMPT], SHORT)[0].token_ids
    assert len(set(found.values())) == 5, "they all say something of their own"
    return found


@pytest.fixture(params=["torch", "native"])
def model(request: pytest.FixtureRequest, tiny_folder: Path) -> Model:
    return load_model(tiny_folder, precision="fp32", is_packed=request.param == "native")


Start = Callable[..., Engine]


@pytest.fixture
def start(model: Model) -> Iterator[Start]:
    """Start an engine; keyword arguments are EngineConfig's."""
    engines: list[Engine] = []

    def begin(**settings: Any) -> Engine:
        engines.append(Engine(model, config=EngineConfig(**{"cache_tokens": 8192, "threads": 1, **settings})))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()


def change(engine: Engine, action: str, name: str, folder: Path | str = "", model: str = "") -> Listener:
    listener = Listener()
    assert action in ("load", "unload")
    request = AdapterRequest(action=action, name=name, folder=str(folder), model=model)
    listener.ticket = engine.submit(request, listener)
    return listener


def load(engine: Engine, name: str, folder: Path) -> int:
    """The version."""
    reply = change(engine, "load", name, folder).last()
    assert isinstance(reply, Reply), reply
    assert (reply.value["name"], reply.value["model"]) == (name, "model")
    return reply.value["version"]


def refusal(listener: Listener) -> RequestError:
    error = listener.error()
    assert isinstance(error, RequestError)
    return error


def is_swept(engine: Engine) -> bool:
    """Whether nothing is kept of adapters that are gone."""
    adapters = engine._adapters
    num_live = len(adapters.names)
    return not adapters._retired and all(
        len(free) == 2 * engine._config.max_adapters - num_live for free in adapters._free.values()
    )


def test_four_adapters_and_the_base_in_one_batch_answer_as_merged_weights_do(
    start: Start, folders: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]
) -> None:
    engine = start()
    gate = Gate(engine)
    for name in NAMES:
        load(engine, name, folders[name])
    asked = {(name, i): submit(engine, ask(PROMPT, SHORT, model=name)) for name in expected for i in range(3)}
    gate.open()
    for (name, _), listener in asked.items():
        assert listener.ids() == expected[name], name
    assert eventually(lambda: is_idle(engine))


def test_adapters_are_listed_after_their_model(start: Start, folders: Mapping[str, Path]) -> None:
    engine = start()
    assert [load(engine, name, folders[name]) for name in ("b", "a")] == [1, 2]
    base, *adapters = engine.models()
    assert [(one.name, one.base, one.abilities) for one in adapters] == [
        ("b", "model", frozenset({"write"})), ("a", "model", frozenset({"write"})),
    ]  # fmt: skip
    assert (base.base, adapters[0].context_length) == (None, base.context_length)
    assert adapters[0].created >= base.created > 0


def test_a_swap_while_a_hundred_requests_run_splits_no_answer(
    start: Start, folders: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]
) -> None:
    engine = start(max_rows=16, max_waiting=200)
    load(engine, "x", folders["a"])
    asked = [submit(engine, ask(PROMPT, SHORT, model="x", tenant=str(i % 3))) for i in range(60)]
    assert asked[0].begun.wait(5)
    load(engine, "x", folders["b"])
    later = [submit(engine, ask(PROMPT, SHORT, model="x", tenant=str(i % 3))) for i in range(40)]
    assert {one.ids() for one in asked} == {expected["a"]}
    assert {one.ids() for one in later} == {expected["b"]}
    assert eventually(lambda: is_idle(engine) and is_swept(engine))


def test_swaps_from_many_threads_leave_whole_answers_and_nothing_behind(
    start: Start, folders: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]
) -> None:
    engine = start(max_rows=8, max_waiting=500)
    load(engine, "x", folders["a"])
    is_over = threading.Event()
    found: list[Listener] = []

    def swap() -> None:
        for number in range(12):
            last = change(engine, "load", "x", folders["ab"[number % 2]]).last()
            assert isinstance(last, Reply) or last.status == 503, last  # pyright: ignore[reportAttributeAccessIssue]
        is_over.set()

    def write() -> None:
        while not is_over.is_set():
            found.append(submit(engine, ask(PROMPT, SHORT, model="x")))
            found[-1].ended.wait(10)

    threads = [threading.Thread(target=work) for work in (swap, swap, write, write, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {one.ids() for one in found} <= {expected["a"], expected["b"]}
    assert eventually(lambda: is_idle(engine) and is_swept(engine))


def test_an_unloaded_adapter_drains_and_then_its_slot_is_empty(
    start: Start, model: Model, folders: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]
) -> None:
    engine = start()
    load(engine, "a", folders["a"])
    running = submit(engine, ask(PROMPT, SHORT, model="a"))
    assert running.begun.wait(5)
    assert isinstance(change(engine, "unload", "a").last(), Reply)
    missing = refusal(submit(engine, ask(PROMPT, SHORT, model="a")))
    assert (missing.status, missing.code) == (404, "model_not_found")
    assert running.ids() == expected["a"]
    assert eventually(lambda: is_swept(engine))
    (resident,) = engine._residents.loaded
    assert resident.num_adapters == 0
    assert [one.name for one in engine.models()] == ["model"]
    assert not any(module._forward_hooks for module in model.network.modules())
    assert submit(engine, ask(PROMPT, SHORT)).ids() == expected["model"]


def test_cancelled_and_late_requests_let_go_of_their_adapter(start: Start, folders: Mapping[str, Path]) -> None:
    engine = start(max_rows=2)
    load(engine, "a", folders["a"])
    long = GenerateOptions(max_tokens=900, ignore_eos=True)
    asked = [submit(engine, ask(PROMPT, long, model="a", timeout_s=0.05 if i % 2 else None)) for i in range(6)]
    refused = submit(engine, ask([10**6], long, model="a"))
    assert asked[0].begun.wait(5)
    change(engine, "unload", "a").last()
    for one in asked:
        one.ticket.cancel()
    assert refusal(refused).status == 400
    assert eventually(lambda: is_idle(engine) and is_swept(engine))


def test_no_prefix_is_shared_with_another_adapter_or_version(start: Start, folders: Mapping[str, Path]) -> None:
    engine = start()
    load(engine, "a", folders["a"])
    prompt = PROMPT * 3

    def cached(model: str) -> int:
        return submit(engine, ask(prompt, SHORT, model=model)).usage().cached_tokens

    assert cached("a") == 0 < cached("a")
    assert cached("model") == 0 < cached("model")
    load(engine, "a", folders["b"])
    assert cached("a") == 0 < cached("a")


def test_many_answers_and_beams_of_one_request_use_its_adapter(
    start: Start, folders: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]
) -> None:
    engine = start()
    load(engine, "a", folders["a"])
    many = submit(engine, ask(PROMPT, GenerateOptions(max_tokens=24, ignore_eos=True, n=3), model="a"))
    assert [many.ids(index) for index in range(3)] == [expected["a"]] * 3
    told = submit(engine, ask(PROMPT, SHORT, model="a", prompt_logprobs=0))
    plain = submit(engine, ask(PROMPT, SHORT, prompt_logprobs=0))
    assert told.ids() == expected["a"]
    a, b = (one.deltas()[0].prompt_logprobs for one in (told, plain))
    assert a is not None
    assert b is not None
    assert [one and one.logprob for one in a] != [one and one.logprob for one in b]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_names_that_are_taken_and_models_that_are_not_there(
    tmp_path: Path, tiny_folder: Path, tiny_models: Mapping[str, Path], folders: Mapping[str, Path]
) -> None:
    models = {"first": tiny_folder, "second": write_tiny(tmp_path, seed=3), "vectors": tiny_models["sentences"]}
    loaded = {name: load_model(path, precision="fp32") for name, path in models.items()}
    with Engine(loaded, EngineConfig(cache_tokens=4096, threads=1)) as engine:
        assert isinstance(change(engine, "load", "a", folders["a"], "first").last(), Reply)
        cases = [
            (("first", folders["a"], "second"), 400, r"'first' is the name of a model\. Give the adapter another\."),
            (("a", folders["b"], "second"), 400, r"'a' is an adapter of 'first'\. Unload it first"),
            (
                ("b", folders["b"], ""),
                400,
                r"may be for any of 2 models\. Name its model\. There are 'first', 's",
            ),
            (("b", folders["b"], "third"), 404, r"There is no model 'third'\. There are 'first', 'second'\."),
            (("b", folders["b"], "a"), 404, r"There is no model 'a'\."),
            (("b", folders["b"], "vectors"), 400, r"'vectors' writes no text, so it takes no adapters\."),
            (("", folders["b"], "first"), 400, r"An adapter needs a name and a folder\."),
        ]
        for (name, folder, model), status, message in cases:
            error = refusal(change(engine, "load", name, folder, model))
            assert error.status == status
            with pytest.raises(RequestError, match=message):
                raise error
        assert [one.name for one in engine.models()] == ["first", "a", "second", "vectors"]
        error = refusal(submit(engine, ReadRequest(model="a", task="embed", texts=("x",))))
        assert str(error) == "'a' is an adapter, which only writes. Ask 'first'."


def test_folders_that_hold_no_adapter_for_this_model_are_refused(
    tmp_path: Path, start: Start, folders: Mapping[str, Path]
) -> None:
    engine = start(max_adapter_rank=4)
    for folder, message in (
        (tmp_path, "has no adapter_config.json. Give the folder of a PEFT adapter."),
        (tmp_path / "none", "has no adapter_config.json."),
        (folders["d"], "has rank 8; at most 4 is served. Raise max_adapter_rank."),
    ):
        error = refusal(change(engine, "load", "x", folder))
        assert message in str(error)
        assert (error.status, error.code) == (400, "invalid_adapter")
    assert load(engine, "x", folders["a"]) == 1
    assert is_swept(engine)


def test_no_more_adapters_are_held_than_allowed(start: Start, folders: Mapping[str, Path]) -> None:
    engine = start(max_adapters=2)
    load(engine, "a", folders["a"])
    load(engine, "b", folders["b"])
    error = refusal(change(engine, "load", "c", folders["c"]))
    assert str(error) == "This server holds 2 adapters at once. Unload one, or serve with more max_adapters."
    load(engine, "a", folders["c"])
    change(engine, "unload", "b").last()
    load(engine, "c", folders["c"])


def test_versions_that_still_drain_bound_how_often_one_may_be_replaced(
    start: Start, folders: Mapping[str, Path]
) -> None:
    engine = start(max_adapters=1)
    load(engine, "a", folders["a"])
    first = submit(engine, ask(PROMPT, GenerateOptions(max_tokens=900, ignore_eos=True), model="a"))
    assert first.begun.wait(5)
    load(engine, "a", folders["b"])
    error = refusal(change(engine, "load", "a", folders["c"]))
    assert str(error).startswith("Requests still use 1 adapters that were replaced or unloaded. Try again when they")
    assert error.status == 503
    first.ticket.cancel()
    assert eventually(lambda: isinstance(change(engine, "load", "a", folders["c"]).last(), Reply))


def test_an_adapter_that_is_not_there_cannot_be_unloaded(start: Start, folders: Mapping[str, Path]) -> None:
    engine = start()
    load(engine, "a", folders["a"])
    error = refusal(change(engine, "unload", "z"))
    assert (str(error), error.status) == ("There is no adapter 'z'. There are 'a'.", 404)


def test_a_stopped_engine_loads_nothing_and_keeps_nothing(
    start: Start, model: Model, folders: Mapping[str, Path]
) -> None:
    engine = start()
    load(engine, "a", folders["a"])
    engine.stop()
    assert refusal(change(engine, "load", "b", folders["b"])).status == 503
    assert not any(module._forward_hooks for module in model.network.modules())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_adapters is 0\. Use 1 or more\."):
        EngineConfig(max_adapters=0)
    with pytest.raises(ConfigError, match=r"max_adapter_rank is 300\. Use 1 to 256\."):
        EngineConfig(max_adapter_rank=300)
