"""An engine as a ``LanguageModel``: whole answers, streams and scores over requests and events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import GenerateOptions, LanguageModel, Message, Prompt
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from tests.models.cases.seq2seq import CASES
from tests.serve.engine.hearing import LONG, ask, eventually, is_idle, only_status, submit, watch, writer_of
from tests.tiny import shop_rows, write_tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]

PROMPTS: list[Prompt] = [f"{'the silk dress ' * count}has" for count in range(12)]
PROMPTS += [[Message(role="user", content=str(row["Title"]))] for row in shop_rows(4)]
PLAIN = GenerateOptions(max_tokens=24)


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


@pytest.fixture
def start(model: Model) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def begin(**settings: Any) -> Engine:
        engines.append(Engine(model, EngineConfig(**{"cache_tokens": 4096, "max_rows": 8, "threads": 1, **settings})))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()


def facts(answers: Any) -> list[tuple[object, ...]]:
    return [
        (a.text, a.finish_reason, a.token_ids, a.usage.prompt_tokens, a.usage.completion_tokens, len(a.logprobs))
        for a in answers
    ]


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        GenerateOptions(max_tokens=9, temperature=0.9, seed=4, n=3),
        GenerateOptions(max_tokens=9, num_beams=3, n=2),
        GenerateOptions(max_tokens=9, logprobs=2),
    ],
    ids=["greedy", "samples", "beams", "logprobs"],
)
def test_whole_answers_are_those_of_the_reference(
    options: GenerateOptions, start: Callable[..., Engine], model: Model
) -> None:
    engine, done = start(), []
    assert facts(engine.generate(PROMPTS, options, done.append)) == facts(LoadedModel(model).generate(PROMPTS, options))
    assert sum(done) == len(PROMPTS)
    assert engine.generate([], options) == []
    assert isinstance(engine, LanguageModel)


@pytest.mark.parametrize("limits", [{"max_waiting": 1}, {"max_waiting_tokens": 30}, {"max_rows": 1, "max_waiting": 3}])
def test_more_prompts_than_the_queue_holds_are_all_answered(
    limits: dict[str, int], start: Callable[..., Engine], model: Model
) -> None:
    engine = start(**{"max_rows": 4, **limits})
    assert facts(engine.generate(PROMPTS, PLAIN)) == facts(LoadedModel(model).generate(PROMPTS, PLAIN))
    assert eventually(lambda: is_idle(engine))


def test_who_finds_the_queue_full_of_others_hears_so(start: Callable[..., Engine]) -> None:
    engine = start(max_rows=1, max_waiting=1)
    watch(writer_of(engine), lambda segments: time.sleep(0.002))
    others = [submit(engine, ask("a")) for _ in range(2)]
    with pytest.raises(OverloadedError, match="queue is full"):
        engine.generate(["c"], PLAIN)
    for other in others:
        other.ticket.cancel()
    assert eventually(lambda: is_idle(engine))
    assert len(engine.generate(["c"], PLAIN)) == 1


def test_a_prompt_that_is_refused_cancels_the_others_of_its_call(start: Callable[..., Engine]) -> None:
    engine = start()
    with pytest.raises(RequestError, match="The prompt is empty"):
        engine.generate([PROMPTS[4], PROMPTS[5], ""], LONG)
    assert eventually(lambda: is_idle(engine))
    assert only_status(engine).generated_tokens < 800


def test_the_pieces_of_a_stream_join_to_the_answer(start: Callable[..., Engine], model: Model) -> None:
    engine, reference = start(), LoadedModel(model)
    options = GenerateOptions(max_tokens=24, logprobs=0)
    for prompt in PROMPTS[::3]:
        (answer,) = reference.generate([prompt], options)
        deltas = list(engine.stream(prompt, options))
        assert "".join(delta.text for delta in deltas) == answer.text
        assert tuple(token for delta in deltas for token in delta.token_ids) == answer.token_ids
        assert [one.token_id for delta in deltas for one in delta.logprobs] == list(answer.token_ids)
        assert deltas[-1].finish_reason == answer.finish_reason
        assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_leaving_a_stream_early_cancels_it(start: Callable[..., Engine]) -> None:
    engine = start()
    stream = engine.stream(PROMPTS[4], LONG)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert eventually(lambda: is_idle(engine))
    assert only_status(engine).generated_tokens < 400


@pytest.mark.parametrize(
    ("options", "name"), [(GenerateOptions(n=2), "n"), (GenerateOptions(num_beams=3), "num_beams")]
)
def test_a_stream_has_one_answer(options: GenerateOptions, name: str, start: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match=rf"{name} is \d, but a stream has one answer") as caught:
        next(start().stream("a", options))
    assert caught.value.param == name


def test_scores_are_those_of_the_reference(start: Callable[..., Engine], model: Model) -> None:
    engine, reference = start(max_rows=3, step_tokens=20), LoadedModel(model)
    texts = [answer.text or "x" for answer in reference.generate(PROMPTS, PLAIN)]
    texts[::2] = [" a b c 丹"] * len(texts[::2])
    for ours, theirs in zip(engine.score(PROMPTS, texts), reference.score(PROMPTS, texts), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-4)
        assert (ours.num_tokens, ours.is_greedy) == (theirs.num_tokens, theirs.is_greedy)
    with pytest.raises(RequestError, match="must both have at least one token"):
        engine.score(["a"], [""])


def test_a_source_and_its_target_are_not_scored_as_one_text(tmp_path: Path) -> None:
    CASES["bart"].make().save_pretrained(tmp_path / "bart")
    write_tiny(tmp_path / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tokenizer" / name).rename(tmp_path / "bart" / name)
    model = load_model(tmp_path / "bart", precision="fp32")
    with (
        Engine(model, EngineConfig(cache_tokens=512, threads=1)) as engine,
        pytest.raises(RequestError, match="this model reads a source"),
    ):
        engine.score(["!"], ["#"])
