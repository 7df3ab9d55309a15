"""The engine's thread: requests come and go from many threads, some fail, it drains and stops; nothing is left over."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification, BertModel

from danlu.core.errors import DanluError, ModelError, OverloadedError, RequestError
from danlu.core.records import Delta, GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.models.paged import Segment
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.engine.request import (
    DetokenizeRequest,
    Event,
    Grammar,
    Reading,
    ReadRequest,
    Reply,
    ServingEngine,
    TokenizeRequest,
    TokenizerRequest,
)
from danlu.serve.engine.spec import ModelSpec
from tests.models.cases.seq2seq import CASES
from tests.models.encoders import save_encoder, save_sentence
from tests.serve.engine.hearing import (
    LONG,
    Gate,
    Listener,
    ask,
    check_books,
    eventually,
    is_idle,
    only_status,
    resident_of,
    submit,
    throw_dice,
    watch,
    writer_of,
)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]

PROMPTS = [
    "Once",
    "the navy silk dress has",
    "pockets and sleeves",
    "丹炉 writes",
    "with a loose fit while its soft",
    "a",
]
SHORT = GenerateOptions(max_tokens=6, ignore_eos=True)
TEXTS = ("a dog", "the cat sat on the mat")


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    save_encoder(folder, BertModel)
    save_sentence(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    save_encoder(folder, BertForSequenceClassification, id2label={0: "good", 1: "bad", 2: "so-so"})
    return folder


@pytest.fixture
def start(model: Model) -> Iterator[Callable[..., Engine]]:
    """Start an engine; keyword arguments are EngineConfig's. At the end all its pages must be free."""
    engines: list[Engine] = []

    def begin(models: Any = model, **settings: Any) -> Engine:
        config = EngineConfig(**{"cache_tokens": 4096, "max_rows": 8, "threads": 1, **settings})
        engines.append(Engine(models, config))
        return engines[-1]

    yield begin
    for engine in engines:
        writers = [resident.writer for resident in engine._residents.loaded if resident.writer is not None]
        engine.stop()
        for writer in writers:
            check_books(writer)
            assert writer.status().cache_usage == 0.0


def alone(model: Model, prompt: Any, options: GenerateOptions) -> str:
    return LoadedModel(model).generate([prompt], options)[0].text


def status_of(error: DanluError) -> tuple[int, str | None]:
    assert isinstance(error, RequestError)
    return error.status, error.code


# many callers


def test_it_is_a_serving_engine(start: Callable[..., Engine]) -> None:
    engine: ServingEngine = start()
    (served,) = engine.models()
    assert (served.name, served.abilities, served.context_length) == ("model", {"write"}, 1024)
    assert engine.status().is_ready


def test_eight_threads_at_once_each_hear_their_own_answers(start: Callable[..., Engine], model: Model) -> None:
    options = GenerateOptions(max_tokens=12, temperature=0.8, seed=3)
    expected = {prompt: alone(model, prompt, options) for prompt in PROMPTS}
    engine = start(max_rows=5, step_tokens=20)
    heard: list[tuple[str, Listener]] = []

    def customer(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            prompt = chance.choice(PROMPTS)
            listener = submit(engine, ask(prompt, options, tenant=str(seed % 3)))
            heard.append((prompt, listener))
            if chance.random() < 0.5:
                listener.last()

    threads = [threading.Thread(target=customer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [listener.text() for _, listener in heard] == [expected[prompt] for prompt, _ in heard]
    assert len(heard) == 48
    assert eventually(lambda: is_idle(engine))


def test_models_that_write_and_models_that_read_are_served_side_by_side(
    start: Callable[..., Engine], model: Model, sentences: Path, classifier: Path, tiny_folder: Path
) -> None:
    models = {
        "writer": model,
        "other": ModelSpec(name="other", path=str(tiny_folder), precision="fp32"),
        "sentences": ModelSpec(name="sentences", path=str(sentences), precision="fp32"),
        "classes": ModelSpec(name="classes", path=str(classifier), precision="fp32"),
    }
    engine = start(models)
    assert [served.name for served in engine.models()] == list(models)
    writing = [submit(engine, ask(prompt, SHORT, model=name)) for prompt in PROMPTS for name in ("writer", "other")]
    embed = submit(engine, ReadRequest(model="sentences", task="embed", texts=TEXTS))
    classify = submit(engine, ReadRequest(model="classes", task="classify", texts=TEXTS))
    assert [one.text() for one in writing[::2]] == [one.text() for one in writing[1::2]]
    vectors, labels = embed.last(), classify.last()
    assert isinstance(vectors, Reading)
    assert isinstance(labels, Reading)
    assert len(vectors.vectors) == 4 * 2 * vectors.width
    assert [{label for label, _ in one} for one in labels.labels] == [{"good", "bad", "so-so"}] * 2
    assert set(engine.status().models) == set(models)
    assert eventually(lambda: is_idle(engine))


# requests that are refused


@pytest.mark.parametrize(
    ("prompt", "message", "status", "code"),
    [
        ("", r"The prompt is empty\. Send at least one token", 400, None),
        ([], r"is empty", 400, None),
        ([1, 2, 9999], r"Token id 9999 is not of this model\. Ids are 0 to \d+", 400, None),
        ([1, -1], r"Token id -1 is not of this model", 400, None),
        (
            "x y " * 600, r"The prompt has \d+ tokens; the model's context is 1024, answer included\. Shorten", 400,
            "context_length_exceeded",
        ),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_answered_says_why(
    prompt: Any, message: str, status: int, code: str | None, start: Callable[..., Engine]
) -> None:
    engine = start()
    listener = submit(engine, ask(prompt))
    assert listener.ended.is_set()
    with pytest.raises(RequestError, match=message):
        raise listener.error()
    assert status_of(listener.error()) == (status, code)
    assert len(listener.events) == 1
    assert is_idle(engine)


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"model": "gpt-9"}, r"There is no model 'gpt-9'\. This server has 'model'", "model"),
        ({"options": GenerateOptions(logit_bias={1: 1.0, 420: 1.0})}, r"logit_bias has token id 420\.", None),
        ({"options": GenerateOptions(stop_token_ids=(-1,), min_tokens=2)}, r"stop_token_ids has token id -1", None),
        ({"options": GenerateOptions(n=9)}, r"n is 9; this server writes 8 answers at a time", "n"),
        ({"options": GenerateOptions(num_beams=9)}, r"num_beams is 9; this server writes 8", "num_beams"),
        (
            {"options": GenerateOptions(num_beams=8, max_tokens=1000)}, r"takes up to \d+ tokens of the key",
            None,
        ),
        ({"options": GenerateOptions(penalty_alpha=0.5, top_k=4)}, r"contrastive search is not", "penalty_alpha"),
        (
            {"options": GenerateOptions(num_beams=2), "grammar": Grammar(kind="json_object")},
            r"num_beams is 2 and the answer has a grammar\. Use one of them", "num_beams",
        ),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused_at_once_and_hurts_nobody(
    fields: dict[str, Any], message: str, param: str | None, start: Callable[..., Engine], model: Model
) -> None:
    engine = start()
    other = submit(engine, ask(PROMPTS[1], LONG))
    fields = {"options": LONG, **fields}
    refused = submit(engine, ask(PROMPTS[0], fields.pop("options"), **fields))
    with pytest.raises(RequestError, match=message):
        raise refused.error()
    error = refused.error()
    assert isinstance(error, RequestError)
    assert param is None or error.param == param
    assert other.text() == alone(model, PROMPTS[1], LONG)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", text="(" * 500),
        Grammar(kind="json_schema", text='{"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}'),
        Grammar(kind="lark", text="start: nothing"),
        Grammar(kind="choice", text="[]"),
        Grammar(kind="regex", text="(a{1,1000}){1,1000}" * 100),
        Grammar(kind="json_schema", text="x" * 100_000),
    ],
)
def test_a_hostile_grammar_fails_alone(grammar: Grammar, start: Callable[..., Engine], model: Model) -> None:
    engine = start(grammar_timeout_s=0.3)
    other = submit(engine, ask(PROMPTS[1], LONG))
    hostile = submit(engine, ask(PROMPTS[0], SHORT, grammar=grammar))
    assert status_of(hostile.error())[0] == 400
    assert other.text() == alone(model, PROMPTS[1], LONG)
    assert engine.status().is_ready


def test_a_model_is_asked_only_for_what_it_can_do(start: Callable[..., Engine], model: Model, sentences: Path) -> None:
    engine = start({"w": model, "s": ModelSpec(name="s", path=str(sentences), precision="fp32")})
    embed = submit(engine, ReadRequest(model="w", task="embed", texts=TEXTS))
    with pytest.raises(RequestError, match=r"'w' cannot embed\. It can: write\."):
        raise embed.error()
    assert status_of(embed.error()) == (400, "unsupported_task")
    with pytest.raises(RequestError, match=r"'s' writes no text\. It can: embed, score\."):
        raise submit(engine, ask("a", model="s")).error()


def test_models_without_a_head_are_not_served(tmp_path: Path) -> None:
    CASES["t5-encoder"].make().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="This model writes no text: it has no head"):
        Engine(load_model(tmp_path / "encoder", precision="fp32", with_tokenizer=False), EngineConfig(threads=1))


def test_a_source_has_no_log_probabilities_of_its_own(tmp_path: Path, start: Callable[..., Engine]) -> None:
    CASES["bart"].make().save_pretrained(tmp_path)
    engine = start(load_model(tmp_path, precision="fp32", with_tokenizer=False))
    listener = submit(engine, ask([5, 6, 7], SHORT, prompt_logprobs=1))
    with pytest.raises(RequestError, match="prompt_logprobs is 1, but this model reads a source"):
        raise listener.error()
    long_source = submit(engine, ask([5] * 60, SHORT))
    with pytest.raises(RequestError, match="The source has 60 tokens; the model reads 40"):
        raise long_source.error()


# full queues


def test_a_full_queue_refuses_with_429_and_recovers(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting=2)
    gate = Gate(engine)
    first = submit(engine, ask("first", SHORT))
    assert gate.arrived.wait(5)
    queued = [submit(engine, ask("next", SHORT)) for _ in range(2)]
    refused = submit(engine, ask("one too many"))
    gate.open()
    error = refused.error()
    assert isinstance(error, OverloadedError)
    assert status_of(error) == (429, "rate_limit_exceeded")
    assert error.retry_after_s >= 1
    assert [listener.reason() for listener in (first, *queued)] == ["length"] * 3
    assert submit(engine, ask("again", SHORT)).reason() == "length"


def test_cancelled_requests_make_room_in_the_queue(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting=1)
    gate = Gate(engine)
    submit(engine, ask("first", SHORT))
    assert gate.arrived.wait(5)
    gone = submit(engine, ask("changes their mind"))
    gone.ticket.cancel()
    gate.open()
    assert gone.reason() == "abort"
    assert submit(engine, ask("stays", SHORT)).reason() == "length"


# requests that end early


def test_a_cancel_is_heard_wherever_the_request_is(start: Callable[..., Engine], model: Model) -> None:
    engine = start(max_rows=2)
    writing, other = submit(engine, ask(PROMPTS[4])), submit(engine, ask(PROMPTS[1], LONG))
    queued = submit(engine, ask(PROMPTS[2]))
    queued.ticket.cancel()
    assert queued.reason() == "abort"
    assert len(queued.events) == 1
    assert writing.begun.wait(5)
    writing.ticket.cancel()
    assert writing.reason() == "abort"
    assert writing.usage().completion_tokens < 400
    assert alone(model, PROMPTS[4], LONG).startswith(writing.text().rstrip("\ufffd"))
    writing.ticket.cancel()  # does nothing any more
    assert other.text() == alone(model, PROMPTS[1], LONG)
    assert eventually(lambda: is_idle(engine))


def test_a_cancel_between_two_looks_into_the_inbox_is_not_lost(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(max_rows=1)
    turn, late = engine._turn, []

    def turn_that_is_overtaken(now: float) -> None:
        if not late:
            late.append(submit(engine, ask(PROMPTS[2])))
            late[0].ticket.cancel()  # after the inbox was emptied, before cancels are looked at
        turn(now)

    monkeypatch.setattr(engine, "_turn", turn_that_is_overtaken)
    submit(engine, ask(PROMPTS[1], SHORT))
    assert eventually(lambda: len(late) > 0)
    assert late[0].reason() == "abort"
    assert late[0].usage().completion_tokens == 0


def test_a_read_that_is_cancelled_hears_so(start: Callable[..., Engine], sentences: Path) -> None:
    engine = start(load_model(sentences, precision="fp32"), read_wait_ms=500.0)
    listener = submit(engine, ReadRequest(model="model", task="embed", texts=TEXTS))
    listener.ticket.cancel()
    assert status_of(listener.error()) == (499, "cancelled")


@pytest.mark.parametrize("timeout_s", [0.0, 0.05])
def test_a_request_whose_time_is_over_hears_504(start: Callable[..., Engine], timeout_s: float) -> None:
    engine = start(max_rows=1, request_timeout_s=60.0)
    watch(writer_of(engine), lambda segments: time.sleep(0.002))
    running = submit(engine, ask(PROMPTS[1], LONG))
    queued = submit(engine, ask(PROMPTS[2], timeout_s=timeout_s))
    assert status_of(queued.error()) == (504, "timeout")
    running.ticket.cancel()
    writing = submit(engine, ask(PROMPTS[2], GenerateOptions(max_tokens=900, ignore_eos=True), timeout_s=0.1))
    assert status_of(writing.error()) == (504, "timeout")
    assert eventually(lambda: is_idle(engine))


def test_the_time_limit_of_the_server_is_for_who_sets_none(start: Callable[..., Engine]) -> None:
    engine = start(request_timeout_s=0.05)
    watch(writer_of(engine), lambda segments: time.sleep(0.002))
    assert status_of(submit(engine, ask(PROMPTS[2])).error()) == (504, "timeout")
    assert submit(engine, ask(PROMPTS[2], SHORT, timeout_s=30.0)).reason() == "length"


# the end of the engine


def test_stopping_lets_answers_finish_within_the_drain_and_takes_no_more(
    start: Callable[..., Engine], model: Model
) -> None:
    engine = start(max_rows=2)
    options = GenerateOptions(max_tokens=20)
    listeners = [submit(engine, ask(prompt, options)) for prompt in PROMPTS]
    engine.stop(drain_s=10)
    assert [listener.text() for listener in listeners] == [alone(model, prompt, options) for prompt in PROMPTS]
    assert not engine.status().is_ready
    late = submit(engine, ask("late"))
    with pytest.raises(RequestError, match=r"The engine is stopping\. Try again soon"):
        raise late.error()
    assert status_of(late.error())[0] == 503
    engine.stop(drain_s=10)  # again does nothing


@pytest.mark.parametrize("several", [GenerateOptions(n=3, temperature=1.0), GenerateOptions(n=3, num_beams=4)])
def test_a_drain_that_is_over_ends_running_and_queued_requests_with_abort(
    start: Callable[..., Engine], several: GenerateOptions
) -> None:
    engine = start(max_rows=4)
    gate = Gate(engine)
    listeners = [submit(engine, ask(PROMPTS[4], LONG)) for _ in range(2)]
    listeners += [submit(engine, ask(PROMPTS[4], several)) for _ in range(2)]
    threading.Timer(0.05, gate.open).start()
    engine.stop(drain_s=0.01)
    assert [listener.reason() for listener in listeners] == ["abort"] * 4
    assert [listeners[3].reason(index) for index in range(3)] == ["abort"] * 3
    assert is_idle(engine)


def test_a_second_stop_shortens_the_first_and_never_lengthens_it(start: Callable[..., Engine]) -> None:
    engine = start()
    watch(writer_of(engine), lambda segments: time.sleep(0.02))
    listener = submit(engine, ask(PROMPTS[4]))
    first = threading.Thread(target=engine.stop, args=(60.0,))
    started = time.monotonic()
    first.start()
    assert eventually(lambda: not engine.status().is_ready)
    engine.stop(0.0)
    first.join(5)
    assert time.monotonic() - started < 5
    assert listener.reason() == "abort"
    engine.stop(60.0)


def test_an_idle_engine_stops_at_once_however_long_it_may_drain(start: Callable[..., Engine]) -> None:
    engine = start()
    started = time.monotonic()
    engine.stop(60.0)
    assert time.monotonic() - started < 5


# what goes wrong inside


class Breaks:
    """Fails the next passes, one for each error."""

    def __init__(self, engine: Engine, errors: Sequence[BaseException], name: str = "model") -> None:
        self.errors = list(errors)
        watch(writer_of(engine, name), self._hurt)

    def _hurt(self, segments: Sequence[Segment]) -> None:
        if self.errors:
            raise self.errors.pop(0)


def test_a_step_that_fails_tells_its_callers_nothing_of_our_insides_and_the_engine_goes_on(
    start: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    Breaks(engine, [RuntimeError("secret 0xdead"), MemoryError()])
    with pytest.raises(RequestError, match=r"^The engine failed on a step\. Try again\.$") as caught:
        engine.generate(["a"], SHORT)
    assert caught.value.status == 500
    assert "secret 0xdead" in caplog.text  # the log has it
    with pytest.raises(RequestError, match=r"^The model ran out of memory\. Try again\.$"):
        list(engine.stream("a", SHORT))
    assert engine.generate(["a"], SHORT)[0].usage.completion_tokens == 6
    assert engine.status().is_ready
    assert is_idle(engine)


def test_those_who_wait_and_other_models_go_on_when_a_step_fails(start: Callable[..., Engine], model: Model) -> None:
    engine = start({"a": model, "b": model}, max_rows=1)
    Breaks(engine, [RuntimeError("once")], "a")
    other = submit(engine, ask(PROMPTS[1], LONG, model="b"))
    failed, waiting = (submit(engine, ask(PROMPTS[2], SHORT, model="a")) for _ in range(2))
    assert status_of(failed.error())[0] == 500
    assert waiting.text() == alone(model, PROMPTS[2], SHORT)
    assert other.text() == alone(model, PROMPTS[1], LONG)


def test_after_three_failed_steps_in_a_row_the_engine_is_not_ready_and_refuses(
    start: Callable[..., Engine], model: Model
) -> None:
    engine = start({"model": model, "fine": model}, max_rows=1)
    Breaks(engine, [RuntimeError("always")] * 100)
    fine = submit(engine, ask(PROMPTS[1], GenerateOptions(max_tokens=900, ignore_eos=True), model="fine"))
    listeners = [submit(engine, ask("a")) for _ in range(5)]
    assert all(isinstance(listener.last(), RequestError) for listener in listeners)  # the queued ones too
    assert isinstance(fine.last(), RequestError)
    assert eventually(lambda: not engine.status().is_ready)
    status = engine.status()
    assert (status.models["model"].running, status.models["model"].waiting) == (0, 0)
    assert status.last_step_age_s == float("inf")
    late = submit(engine, ask("a"))
    with pytest.raises(RequestError, match="The engine has failed"):
        raise late.error()
    assert status_of(late.error())[0] == 503
    engine.stop(1.0)


def test_steps_that_fail_now_and_then_do_not_add_up(start: Callable[..., Engine]) -> None:
    engine = start()
    breaks = Breaks(engine, [])
    for _ in range(4):
        breaks.errors.append(RuntimeError("now and then"))
        assert status_of(submit(engine, ask("a", SHORT)).error())[0] == 500
        assert submit(engine, ask("a", SHORT)).reason() == "length"
    assert engine.status().is_ready


def test_a_bug_between_steps_leaves_nobody_waiting(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def broken(*_: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(writer_of(engine), "add", broken)
    listener = submit(engine, ask("a"))
    assert eventually(lambda: not engine.status().is_ready)
    assert status_of(listener.error())[0] == 500


def test_a_bug_in_what_reads_requests_hurts_only_the_request(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def broken(*_: object) -> None:
        raise KeyError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(resident_of(engine), "prepare", broken)
        assert status_of(submit(engine, ask("a")).error())[0] == 500
    assert submit(engine, ask("a", SHORT)).reason() == "length"


def test_a_listener_that_raises_hurts_no_other_request(
    start: Callable[..., Engine], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ValueError("listener")

    engine = start()
    engine.submit(ask(PROMPTS[4], SHORT), broken)
    good = submit(engine, ask(PROMPTS[1], LONG))
    engine.submit(ask(PROMPTS[2]), broken).cancel()
    assert good.text() == alone(model, PROMPTS[1], LONG)
    assert eventually(lambda: is_idle(engine))
    assert "a listener of the engine failed" in caplog.text


# what needs no pass


def test_texts_and_ids_are_turned_into_each_other(start: Callable[..., Engine], model: Model) -> None:
    engine = start()
    heard = Listener()
    engine.submit(TokenizeRequest(model="model", prompt="the silk 丹炉"), heard)
    reply = heard.last()
    assert isinstance(reply, Reply)
    assert reply.value["ids"] == model.chat.prompt_ids("the silk 丹炉")
    assert reply.value["context_length"] == 1024
    assert reply.value["texts"][0] == "t"
    heard = Listener()
    engine.submit(DetokenizeRequest(model="model", ids=tuple(reply.value["ids"])), heard)
    assert heard.last() == Reply(value={"text": "the silk 丹炉"})
    heard = Listener()
    engine.submit(DetokenizeRequest(model="model", ids=(1, 5000)), heard)
    with pytest.raises(RequestError, match=r"Token id 5000 is not of this model\. Ids are 0 to 419"):
        raise heard.error()
    heard = Listener()
    engine.submit(TokenizerRequest(model="model"), heard)
    reply = heard.last()
    assert isinstance(reply, Reply)
    assert (reply.value["kind"], reply.value["vocabulary_size"]) == ("BPE", 420)
    assert reply.value["end_ids"] == sorted(model.chat.tokenizer.end_ids)
    assert "im_start" in reply.value["chat_template"]


# numbers


def test_the_age_of_the_last_step_grows_only_while_there_is_work(start: Callable[..., Engine]) -> None:
    engine = start()
    assert is_idle(engine)
    gate = Gate(engine)
    listeners = [submit(engine, ask(prompt, SHORT)) for prompt in PROMPTS]
    assert gate.arrived.wait(5)
    time.sleep(0.02)
    status = engine.status()
    assert status.last_step_age_s > 0.01
    assert only_status(engine).running + only_status(engine).waiting <= len(PROMPTS)
    gate.open()
    for listener in listeners:
        listener.last()
    assert eventually(lambda: is_idle(engine))
    assert only_status(engine).generated_tokens == 6 * len(PROMPTS)


# a storm


def stormy(chance: random.Random, model: Model) -> Any:
    """A request: most are fine, some are not."""
    kind = chance.random()
    if kind < 0.05:
        return ask(chance.choice(["", [], [99_999], [-1], "x y " * 600]), SHORT)
    if kind < 0.08:
        return ask("a", SHORT, grammar=Grammar(kind="regex", text="("))
    if kind < 0.10:
        return ask("a", GenerateOptions(max_tokens=4, logit_bias={99_999: 1.0}))
    if kind < 0.12:
        return ReadRequest(model="model", task="embed", texts=("a",))
    ids = [chance.randrange(400) for _ in range(chance.choice((1, 5, 30, 70, 150)))]
    if chance.random() < 0.3:
        ids = [7] * 130 + ids
    shape: dict[str, Any] = {}
    way = chance.random()
    if way < 0.1:
        shape = {"num_beams": 3, "n": chance.randrange(1, 4)}
    elif way < 0.4:
        shape = {"temperature": 1.0, "seed": chance.randrange(10), "n": chance.choice((1, 1, 3))}
    options = GenerateOptions(max_tokens=chance.choice((1, 3, 8, 40)), stop=("a",) if way > 0.8 else (), **shape)
    fields: dict[str, Any] = {"tenant": chance.choice("abc"), "priority": chance.randrange(2)}
    if chance.random() < 0.1:
        fields["timeout_s"] = chance.choice((0.0, 0.01, 0.05))
    if chance.random() < 0.05:
        fields["prompt_logprobs"] = 1
    if way > 0.97:
        fields["grammar"] = Grammar(kind="choice", text='["navy", "red"]')
    return ask(ids, options, **fields)


def test_after_a_storm_of_10_000_requests_every_page_is_free(start: Callable[..., Engine], model: Model) -> None:
    engine = start(max_rows=16, max_waiting=20, step_tokens=256, cache_tokens=1536)
    writer = writer_of(engine)
    throw_dice(writer, model)
    watch(writer, sometimes_fails := Seldom(400))
    counts: list[dict[str, int]] = []

    def customer(seed: int) -> None:
        chance = random.Random(seed)
        seen: dict[str, int] = {}
        open_ones: list[Listener] = []
        for _ in range(1250):
            open_ones.append(submit(engine, stormy(chance, model)))
            if chance.random() < 0.3:
                chance.choice(open_ones).ticket.cancel()
            if len(open_ones) > 12:
                gone = open_ones.pop(0)
                end_of(gone, seen)
        for listener in open_ones:
            end_of(listener, seen)
        counts.append(seen)

    threads = [threading.Thread(target=customer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 8
    total = {name: sum(count.get(name, 0) for count in counts) for name in {name for one in counts for name in one}}
    assert sum(total.values()) == 10_000, total
    assert {"stop", "length", "abort", "400", "429", "504", "500"} <= set(total), total
    assert sometimes_fails.count > 0
    assert engine.status().is_ready
    assert eventually(lambda: is_idle(engine))
    check_books(writer)
    assert only_status(engine).preemptions > 0
    assert only_status(engine).cached_tokens > 0
    assert writer.tickets == []


def end_of(listener: Listener, seen: dict[str, int]) -> None:
    last = listener.last()
    name = str(last.finish_reason) if isinstance(last, Delta) else str(getattr(last, "status", "?"))
    seen[name] = seen.get(name, 0) + 1


class Seldom:
    """Fails one pass of so many."""

    def __init__(self, every: int) -> None:
        self.count = 0
        self._every, self._passes = every, 0

    def __call__(self, segments: Sequence[Segment]) -> None:
        self._passes += 1
        if self._passes % self._every == 0:
            self.count += 1
            raise RuntimeError("a pass of the storm")


def test_requests_of_callers_are_told_apart(start: Callable[..., Engine]) -> None:
    engine = start()
    text = "the navy silk dress has pockets and sleeves " * 8
    found = [
        submit(engine, ask(text, SHORT, tenant=tenant)).usage().cached_tokens > 0 for tenant in ("a", "a", "b", "b")
    ]
    assert found == [False, True, False, True]
