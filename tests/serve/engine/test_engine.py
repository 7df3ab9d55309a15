"""The engine against the reference sampler, its limits, and what goes wrong inside it, on a tiny random model."""

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, DanluError, ModelError, OverloadedError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, Prompt
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.engine import Engine, EngineConfig
from tests.models.cases.seq2seq import CASES
from tests.tiny import shop_rows, write_tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(30)]

WORDS = [
    "the",
    "navy",
    "silk",
    "dress",
    "has",
    "pockets",
    "and",
    "sleeves",
    "with",
    "a",
    "loose",
    "fit",
    "while",
    "its",
    "soft",
    "lining",
    "keeps",
    "you",
    "warm",
]
PROMPTS: list[Prompt] = [" ".join(itertools.islice(itertools.cycle(WORDS), i, i + 1 + 3 * i % 23)) for i in range(20)]
PROMPTS += [[{"role": "user", "content": str(row["Title"])}] for row in shop_rows(6)]
LONG = GenerateOptions(max_tokens=400)


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


@pytest.fixture(scope="module")
def reference(model: Model) -> list[Completion]:
    """Every prompt alone, through the simplest sampler."""
    return [LoadedModel(model).generate([prompt], GenerateOptions(max_tokens=40))[0] for prompt in PROMPTS]


@pytest.fixture
def start(model: Model) -> Iterator[Callable[..., Engine]]:
    """Start an engine; keyword arguments are EngineConfig's."""
    engines: list[Engine] = []

    def begin(**settings: int) -> Engine:
        engines.append(Engine(model, config=EngineConfig(**settings)))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()


class Listener:
    """Keeps what an engine says about one request."""

    def __init__(self) -> None:
        self.events: list[Delta | DanluError] = []
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: Delta | DanluError) -> None:
        self.events.append(event)
        self.begun.set()
        if isinstance(event, DanluError) or event.finish_reason is not None:
            self.ended.set()

    def last(self) -> Delta | DanluError:
        assert self.ended.wait(10)
        return self.events[-1]

    def reason(self) -> str | None:
        last = self.last()
        assert isinstance(last, Delta)
        return last.finish_reason

    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def eventually(check: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.002)
    return False


def is_idle(engine: Engine) -> bool:
    status = engine.status()
    return (status.running, status.waiting, status.cache_usage, status.last_step_age_s) == (0, 0, 0.0, 0.0)


# the same answers, whatever the batch


@pytest.mark.parametrize("max_rows", [1, 2, 8])
def test_greedy_answers_are_the_reference_samplers_whatever_the_batch(
    max_rows: int, start: Callable[..., Engine], reference: list[Completion]
) -> None:
    assert {answer.finish_reason for answer in reference} == {"stop", "length"}  # both ways to end are compared
    assert start(max_rows=max_rows).generate(PROMPTS, GenerateOptions(max_tokens=40)) == reference


def test_a_small_prefill_budget_and_cache_change_no_answer(
    start: Callable[..., Engine], reference: list[Completion]
) -> None:
    engine = start(max_rows=8, prefill_tokens=10, cache_tokens=200)
    assert engine.generate(PROMPTS, GenerateOptions(max_tokens=40)) == reference
    assert max(engine.status().steps_by_batch_size) < 8  # the cache, not max_rows, was the limit


def test_a_cache_that_grows_in_rows_and_tokens_changes_no_answer(start: Callable[..., Engine], model: Model) -> None:
    options = GenerateOptions(max_tokens=300)  # the cache begins with one row of 256 tokens
    alone = [LoadedModel(model).generate([prompt], options)[0] for prompt in PROMPTS[:5]]
    assert max(a.usage.prompt_tokens + a.usage.completion_tokens for a in alone) > 256
    engine, listeners = start(max_rows=5), [Listener() for _ in range(5)]
    for prompt, listener in zip(PROMPTS, listeners, strict=False):
        engine.submit(prompt, options, listener)
        listener.begun.wait(5)  # the next one joins while this one is being written
    assert [listener.reason() for listener in listeners] == [a.finish_reason for a in alone]
    assert [listener.text() for listener in listeners] == [a.text for a in alone]


def test_rows_that_join_and_leave_in_the_middle_change_no_other_answer(
    start: Callable[..., Engine], model: Model
) -> None:
    lengths = [3, 60, 1, 25, 2, 80, 7, 40, 1, 12]  # rows finish in the middle, so others move into their place
    alone = [
        LoadedModel(model).generate([prompt], GenerateOptions(max_tokens=length))[0].text
        for prompt, length in zip(PROMPTS, lengths, strict=False)
    ]
    engine, listeners = start(max_rows=4), [Listener() for _ in lengths]
    for prompt, length, listener in zip(PROMPTS, lengths, listeners, strict=False):
        engine.submit(prompt, GenerateOptions(max_tokens=length), listener)
    dropped = engine.submit(PROMPTS[11], LONG, Listener())
    listeners[4].last()
    dropped.cancel()
    assert [listener.reason() is not None and listener.text() for listener in listeners] == alone


def test_seeded_sampling_does_not_depend_on_the_batch(start: Callable[..., Engine], model: Model) -> None:
    options = GenerateOptions(max_tokens=30, temperature=0.9, top_p=0.95, top_k=50, seed=7)
    alone = [LoadedModel(model).generate([prompt], options)[0] for prompt in PROMPTS]
    assert start(max_rows=8).generate(PROMPTS, options) == alone
    assert start(max_rows=3).generate(PROMPTS, options) == alone
    other = GenerateOptions(max_tokens=30, temperature=0.9, top_p=0.95, top_k=50, seed=8)
    assert start(max_rows=8).generate(PROMPTS, other) != alone


def test_sampling_without_a_seed_differs_from_call_to_call(start: Callable[..., Engine]) -> None:
    options = GenerateOptions(max_tokens=30, temperature=1.0)
    engine = start()
    assert len({engine.generate([PROMPTS[3]], options)[0].text for _ in range(4)}) == 4


# where an answer ends


def test_the_pieces_of_a_stream_join_to_the_answer(start: Callable[..., Engine], reference: list[Completion]) -> None:
    engine = start()
    for prompt, answer in zip(PROMPTS[:6], reference, strict=False):
        deltas = list(engine.stream(prompt, GenerateOptions(max_tokens=40)))
        assert "".join(delta.text for delta in deltas) == answer.text
        assert (deltas[-1].finish_reason, deltas[-1].usage) == (answer.finish_reason, answer.usage)
        assert all(delta.finish_reason is None and delta.text for delta in deltas[:-1])


def test_a_stop_text_across_token_borders_ends_the_answer_before_it(
    start: Callable[..., Engine], model: Model, reference: list[Completion]
) -> None:
    engine, cut = start(), 0
    for prompt, answer in zip(PROMPTS, reference, strict=True):
        ids = [i for i in answer.token_ids if i not in model.chat.tokenizer.end_ids]
        pieces = [model.chat.tokenizer.decode([i]) for i in ids]
        border = next((i for i in range(8, len(ids) - 1) if pieces[i].isascii() and pieces[i + 1].isascii()), None)
        if border is None:
            continue
        stop = pieces[border][-2:] + pieces[border + 1][:2]  # the end of one token and the start of the next
        expected = answer.text[: answer.text.index(stop)]
        options = GenerateOptions(max_tokens=40, stop=("never written", stop))
        stopped = engine.generate([prompt], options)[0]
        assert (stopped.text, stopped.finish_reason) == (expected, "stop")
        assert "".join(delta.text for delta in engine.stream(prompt, options)) == expected
        cut += 1
    assert cut >= 5


def test_text_held_back_for_a_stop_that_never_comes_is_given_out_at_the_end(
    start: Callable[..., Engine], reference: list[Completion]
) -> None:
    answer = next(a for a in reference if a.finish_reason == "length" and a.text[-1:].isascii())
    prompt = PROMPTS[reference.index(answer)]
    options = GenerateOptions(max_tokens=40, stop=(answer.text[-1] + "\x00 more",))
    assert start().generate([prompt], options)[0].text == answer.text


def test_max_tokens_ends_with_length_and_an_end_token_with_stop(
    start: Callable[..., Engine], reference: list[Completion]
) -> None:
    engine = start()
    short = engine.generate(PROMPTS[:3], GenerateOptions(max_tokens=1))
    assert [(a.finish_reason, a.usage.completion_tokens) for a in short] == [("length", 1)] * 3
    ended = next(a for a in reference if a.finish_reason == "stop")
    again = engine.generate([PROMPTS[reference.index(ended)]], LONG)[0]
    assert (again.text, again.finish_reason) == (ended.text, "stop")


def test_an_answer_that_fills_the_context_ends_with_length(tmp_path: Path) -> None:
    model = load_model(write_tiny(tmp_path / "short", context=48, seed=1), precision="fp32")
    with Engine(model) as engine:
        prompts = ["x" * n for n in (1, 30, 46, 47)]
        sizes = [len(model.chat.tokenizer.encode(prompt)) for prompt in prompts]
        answers = engine.generate(prompts, GenerateOptions(max_tokens=1000))
        assert [(a.finish_reason, a.usage.prompt_tokens) for a in answers] == [("length", size) for size in sizes]
        assert [a.usage.prompt_tokens + a.usage.completion_tokens for a in answers] == [48] * 4
        assert answers == LoadedModel(model).generate(prompts, GenerateOptions(max_tokens=1000))
        with pytest.raises(RequestError, match=r"The prompt has 48 tokens; the model's context is 48") as caught:
            engine.generate(["x" * 48])
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.status == 400


# requests that are refused


@pytest.mark.parametrize(
    ("prompt", "message", "param"),
    [
        ("", r"The prompt is empty\. Send at least one token", "prompt"),
        ([], r"The prompt is empty", "prompt"),
        ([1, 2, 9999], r"Token id 9999 is not of this model\. Ids are 0 to \d+", "prompt"),
        ([1, -1], r"Token id -1 is not of this model", "prompt"),
        ("x y " * 600, r"The prompt has \d+ tokens; the model's context is 1024, answer included\. Shorten", None),
    ],
)
def test_a_prompt_that_cannot_be_answered_says_why(
    prompt: str | list[int], message: str, param: str | None, start: Callable[..., Engine]
) -> None:
    engine, listener = start(), Listener()
    with pytest.raises(RequestError, match=message) as caught:
        engine.submit(prompt, LONG, listener)
    assert caught.value.status == 400
    assert param is None or caught.value.param == param
    assert listener.events == []
    assert is_idle(engine)


def test_token_ids_are_a_prompt_too(start: Callable[..., Engine], model: Model, reference: list[Completion]) -> None:
    listener = Listener()
    ticket = start().submit(model.chat.prompt_ids(PROMPTS[2]), GenerateOptions(max_tokens=40), listener)
    assert listener.reason() == reference[2].finish_reason
    assert listener.text() == reference[2].text
    assert ticket.prompt_tokens == reference[2].usage.prompt_tokens


@pytest.mark.parametrize("name", ["max_rows", "max_waiting", "max_waiting_tokens", "prefill_tokens", "cache_tokens"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0. Use 1 or more"):
        EngineConfig(**{name: 0})


class Gate:
    """Holds the engine's thread before a step until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self._open, self.arrived = threading.Event(), threading.Event()
        step = engine._step

        def gated(newcomers: Sequence[object]) -> None:
            self.arrived.set()
            assert self._open.wait(10)
            step(newcomers)  # pyright: ignore[reportArgumentType]

        engine._step = gated

    def open(self) -> None:
        self._open.set()


def test_a_full_queue_refuses_with_429_and_recovers(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting=2)
    gate, listeners = Gate(engine), [Listener() for _ in range(3)]
    engine.submit("first", GenerateOptions(max_tokens=2), listeners[0])
    assert gate.arrived.wait(5)
    for listener in listeners[1:]:
        engine.submit("next", GenerateOptions(max_tokens=2), listener)
    assert engine.status().waiting == 2
    with pytest.raises(OverloadedError, match=r"The queue is full: 2 requests wait\. Try again") as caught:
        engine.submit("one too many", LONG, Listener())
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    gate.open()
    assert [listener.reason() for listener in listeners] == ["length"] * 3
    assert engine.generate(["again"], GenerateOptions(max_tokens=2))[0].finish_reason == "length"


def test_queued_prompt_tokens_are_bounded_but_one_long_prompt_may_wait(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting_tokens=20)
    gate = Gate(engine)
    engine.submit("first", GenerateOptions(max_tokens=2), Listener())
    assert gate.arrived.wait(5)
    listener = Listener()
    engine.submit("x" * 100, GenerateOptions(max_tokens=2), listener)
    with pytest.raises(OverloadedError, match="The queue is full: 1 requests wait"):
        engine.submit("small", GenerateOptions(max_tokens=2), Listener())
    gate.open()
    assert listener.reason() == "length"


def test_cancelled_requests_make_room_in_the_queue(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting=1)
    gate = Gate(engine)
    engine.submit("first", GenerateOptions(max_tokens=2), Listener())
    assert gate.arrived.wait(5)
    for _ in range(5):
        engine.submit("changes their mind", LONG, Listener()).cancel()
    assert engine.status().waiting == 0
    listener = Listener()
    engine.submit("stays", GenerateOptions(max_tokens=2), listener)
    gate.open()
    assert listener.reason() == "length"


@pytest.mark.parametrize("limits", [{"max_waiting": 1}, {"max_waiting_tokens": 30}, {"max_rows": 1, "max_waiting": 3}])
def test_generate_takes_more_prompts_than_the_queue_holds(
    limits: dict[str, int], start: Callable[..., Engine], reference: list[Completion]
) -> None:
    done: list[int] = []
    engine = start(**{"max_rows": 4, **limits})
    assert engine.generate(PROMPTS, GenerateOptions(max_tokens=40), done.append) == reference
    assert sum(done) == len(PROMPTS)


# requests that end early


def test_a_running_request_that_is_cancelled_ends_with_abort_and_frees_its_row(
    start: Callable[..., Engine], model: Model
) -> None:
    engine, listener, other = start(max_rows=2), Listener(), Listener()
    ticket = engine.submit(PROMPTS[4], LONG, listener)
    engine.submit(PROMPTS[5], GenerateOptions(max_tokens=100), other)
    assert listener.begun.wait(5)
    ticket.cancel()
    assert listener.reason() == "abort"
    last = listener.last()
    assert isinstance(last, Delta)
    assert last.usage is not None
    assert last.usage.completion_tokens < 400
    whole = LoadedModel(model).generate([PROMPTS[4]], LONG)[0].text
    assert whole.startswith(listener.text().rstrip("\ufffd"))
    assert other.reason() == "length"
    ticket.cancel()  # does nothing any more
    assert eventually(lambda: is_idle(engine))
    assert listener.events[-1] is last


def test_a_queued_request_that_is_cancelled_ends_before_the_next_step_although_it_is_not_first(
    start: Callable[..., Engine],
) -> None:
    engine, first, second, third = start(max_rows=1), Listener(), Listener(), Listener()
    ticket = engine.submit(PROMPTS[4], LONG, first)
    engine.submit(PROMPTS[5], LONG, second)
    engine.submit(PROMPTS[6], LONG, third).cancel()
    assert third.reason() == "abort"
    assert not first.ended.is_set()
    assert not second.ended.is_set()
    assert len(third.events) == 1
    ticket.cancel()
    assert second.reason() in ("length", "stop")


def test_leaving_a_stream_early_cancels_it(start: Callable[..., Engine]) -> None:
    engine = start()
    stream = engine.stream(PROMPTS[4], LONG)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert eventually(lambda: is_idle(engine))
    assert engine.status().generated_tokens < 400


def test_a_prompt_that_is_refused_cancels_the_others_of_its_call(start: Callable[..., Engine]) -> None:
    engine = start()
    with pytest.raises(RequestError, match="The prompt is empty"):
        engine.generate([PROMPTS[4], PROMPTS[5], ""], LONG)
    assert eventually(lambda: is_idle(engine))


def test_stopping_lets_answers_finish_within_the_drain_and_takes_no_more(
    start: Callable[..., Engine], model: Model
) -> None:
    engine, listeners = start(max_rows=2), [Listener() for _ in range(4)]
    options = GenerateOptions(max_tokens=20)
    for prompt, listener in zip(PROMPTS, listeners, strict=False):
        engine.submit(prompt, options, listener)
    engine.stop(drain_s=10)
    assert [listener.text() for listener in listeners] == [
        LoadedModel(model).generate([prompt], options)[0].text for prompt in PROMPTS[:4]
    ]
    assert not engine.status().is_ready
    with pytest.raises(RequestError, match=r"The engine is stopping\. Try again soon") as caught:
        engine.submit("late", options, Listener())
    assert caught.value.status == 503
    engine.stop(drain_s=10)  # again does nothing


def test_a_drain_that_is_over_ends_running_and_queued_requests_with_abort(start: Callable[..., Engine]) -> None:
    engine, listeners = start(max_rows=1), [Listener() for _ in range(3)]
    gate = Gate(engine)
    for listener in listeners:
        engine.submit(PROMPTS[4], LONG, listener)
    threading.Timer(0.05, gate.open).start()
    engine.stop(drain_s=0.01)
    assert [listener.reason() for listener in listeners] == ["abort"] * 3
    assert is_idle(engine)


def test_a_second_stop_shortens_the_first_and_never_lengthens_it(start: Callable[..., Engine]) -> None:
    engine, listener = start(), Listener()
    step = engine._step

    def slow(newcomers: Sequence[object]) -> None:
        time.sleep(0.02)
        step(newcomers)  # pyright: ignore[reportArgumentType]

    engine._step = slow
    engine.submit(PROMPTS[4], LONG, listener)
    first = threading.Thread(target=engine.stop, args=(60.0,))
    started = time.monotonic()
    first.start()
    assert eventually(lambda: not engine.status().is_ready)
    engine.stop(0.0)
    first.join(5)
    assert time.monotonic() - started < 5
    assert listener.reason() == "abort"
    engine.stop(60.0)


# what goes wrong inside


def test_a_step_that_fails_tells_its_callers_nothing_of_our_insides_and_the_engine_goes_on(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, failures = start(), [RuntimeError("secret 0xdead"), MemoryError()]
    prefill = engine._runner.prefill

    def broken(newcomers: Sequence[object]) -> list[int]:
        if failures:
            raise failures.pop(0)
        return prefill(newcomers)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(engine._runner, "prefill", broken)
    with pytest.raises(RequestError, match=r"^The engine failed on a step\. Try again\.$") as caught:
        engine.generate(["a", "b"], GenerateOptions(max_tokens=3))
    assert caught.value.status == 500
    assert "secret 0xdead" in caplog.text  # the log has it
    with pytest.raises(RequestError, match=r"^The model ran out of memory\. Try again\.$"):
        list(engine.stream("a", GenerateOptions(max_tokens=3)))
    assert engine.generate(["a"], GenerateOptions(max_tokens=3))[0].usage.completion_tokens == 3
    assert engine.status().is_ready
    assert is_idle(engine)


def test_after_three_failed_steps_in_a_row_the_engine_is_not_ready_and_refuses(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(max_rows=1)

    def broken(newcomers: Sequence[object]) -> list[int]:
        raise RuntimeError("always")

    monkeypatch.setattr(engine._runner, "prefill", broken)
    gate, listeners = Gate(engine), [Listener() for _ in range(5)]
    for listener in listeners:
        engine.submit("a", LONG, listener)
    gate.open()
    assert all(isinstance(listener.last(), RequestError) for listener in listeners)  # the queued ones too
    assert eventually(lambda: not engine.status().is_ready)
    status = engine.status()
    assert (status.running, status.waiting, status.last_step_age_s) == (0, 0, float("inf"))
    with pytest.raises(RequestError, match="The engine has failed") as caught:
        engine.submit("a", LONG, Listener())
    assert caught.value.status == 503
    engine.stop(1.0)


def test_a_listener_that_raises_hurts_no_other_request(
    start: Callable[..., Engine], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Delta | DanluError) -> None:
        raise ValueError("listener")

    engine, good = start(), Listener()
    engine.submit(PROMPTS[4], GenerateOptions(max_tokens=20), broken)
    engine.submit(PROMPTS[5], GenerateOptions(max_tokens=20), good)
    engine.submit(PROMPTS[6], LONG, broken).cancel()
    assert good.reason() == "length"
    assert good.text() == LoadedModel(model).generate([PROMPTS[5]], GenerateOptions(max_tokens=20))[0].text
    assert eventually(lambda: is_idle(engine))
    assert engine.status().is_ready
    assert "a listener of the engine failed" in caplog.text


def test_300_submits_and_cancels_from_several_threads_leave_nothing_behind(start: Callable[..., Engine]) -> None:
    engine, listeners = start(max_rows=5, max_waiting=40, prefill_tokens=60, cache_tokens=2000), []
    refused: queue.SimpleQueue[str] = queue.SimpleQueue()

    def customer(seed: int) -> None:
        chance = random.Random(seed)
        tickets = []
        for _ in range(60):
            prompt = "" if chance.random() < 0.05 else chance.choice(PROMPTS)
            stop = ("a",) if chance.random() < 0.2 else ()
            options = GenerateOptions(
                max_tokens=chance.randrange(1, 30), temperature=chance.choice((0.0, 1.0)), stop=stop
            )
            listener = Listener()
            try:
                tickets.append(engine.submit(prompt, options, listener))
            except RequestError as error:
                refused.put(type(error).__name__)
            else:
                listeners.append(listener)
            if tickets and chance.random() < 0.4:
                chance.choice(tickets).cancel()
            if chance.random() < 0.1:
                time.sleep(0.01)

    threads = [threading.Thread(target=customer, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reasons = [listener.reason() for listener in listeners]
    assert len(listeners) + refused.qsize() == 300
    assert set(reasons) == {"stop", "length", "abort"}
    assert eventually(lambda: is_idle(engine))
    assert engine._runner._cache is None
    for listener in listeners:  # one last event, and nothing after it
        ends = [e for e in listener.events if isinstance(e, DanluError) or e.finish_reason is not None]
        assert ends == [listener.events[-1]]


# numbers


def test_the_status_counts_tokens_and_steps(start: Callable[..., Engine], model: Model) -> None:
    engine = start(max_rows=4)
    assert engine.status().is_ready
    assert is_idle(engine)
    gate = Gate(engine)
    prompts = PROMPTS[:4]
    listeners = [Listener() for _ in prompts]
    for prompt, listener in zip(prompts, listeners, strict=True):
        engine.submit(prompt, GenerateOptions(max_tokens=8), listener)
    assert gate.arrived.wait(5)
    time.sleep(0.02)
    status = engine.status()
    assert status.running + status.waiting == 4
    assert status.last_step_age_s > 0.01
    gate.open()
    for listener in listeners:
        listener.last()
    status = engine.status()
    assert status.prompt_tokens == sum(len(model.chat.prompt_ids(prompt)) for prompt in prompts)
    assert status.generated_tokens == 32
    steps = status.steps_by_batch_size
    assert sum(size * count for size, count in steps.items()) == 32 - 4  # reading a prompt gives the first token


# ---- options ---------------------------------------------------------------------------------------------------------


def test_penalties_bias_and_log_probabilities_are_those_of_the_reference(
    model: Model, start: Callable[..., Engine]
) -> None:
    options = GenerateOptions(
        max_tokens=12, repetition_penalty=1.3, presence_penalty=0.4, no_repeat_ngram_size=2, logit_bias={14: -100.0},
        min_tokens=3, logprobs=2,
    )  # fmt: skip
    answers = start(max_rows=4).generate(PROMPTS[:8], options)
    expected = LoadedModel(model).generate(PROMPTS[:8], options)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        ours, theirs = ([item.logprob for item in one.logprobs] for one in (answer, other))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_streams_log_probabilities_are_told_with_its_tokens(start: Callable[..., Engine]) -> None:
    options = GenerateOptions(max_tokens=9, logprobs=0)
    engine = start()
    (answer,) = engine.generate(PROMPTS[:1], options)
    told = [item for delta in engine.stream(PROMPTS[0], options) for item in delta.logprobs]
    assert [item.token_id for item in told] == list(answer.token_ids)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (GenerateOptions(n=2), "n is 2"),
        (GenerateOptions(num_beams=3), "num_beams is 3"),
        (GenerateOptions(lookup_tokens=4), "lookup_tokens is 4"),
        (GenerateOptions(penalty_alpha=0.5, top_k=4), r"penalty_alpha is 0\.5"),
    ],
)
def test_ways_to_write_that_the_engine_does_not_have_are_refused(
    options: GenerateOptions, name: str, start: Callable[..., Engine]
) -> None:
    with pytest.raises(RequestError, match=f"{name}; the engine has only") as error:
        start().generate(PROMPTS[:1], options)
    assert error.value.param == name.split()[0]


def test_models_that_are_no_decoders_are_refused(tmp_path: Path) -> None:
    CASES["t5"].make().save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="The engine serves decoders; this model reads a source and writes a target"):
        Engine(load_model(tmp_path / "t5", precision="fp32"))
    CASES["t5-encoder"].make().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="This model writes no text: it has no head"):
        Engine(load_model(tmp_path / "encoder", precision="fp32"))
