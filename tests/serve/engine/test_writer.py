"""The write lane against the reference sampler: whatever shares a step, a page or a prefix, answers stay the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import Completion, GenerateOptions, Message, TokenLogprob
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.request import Grammar
from tests.serve.engine.hearing import LONG, AnyPrompt, Desk, Listener, check_books
from tests.tiny import shop_rows

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]

WORDS = [
    *("the", "navy", "silk", "dress", "has", "pockets", "and", "sleeves", "with", "a", "loose", "fit", "while", "its"),
    *("soft", "lining", "keeps", "you", "warm"),
]
PROMPTS: list[AnyPrompt] = [
    " ".join(itertools.islice(itertools.cycle(WORDS), i, i + 1 + 3 * i % 23)) for i in range(14)
]
PROMPTS += [[Message(role="user", content=str(row["Title"]))] for row in shop_rows(4)]
SHARED = " ".join(itertools.islice(itertools.cycle(WORDS), 90)) + " "
"""Some pages that several prompts begin with."""
PLAIN = GenerateOptions(max_tokens=40)
SAMPLED = GenerateOptions(max_tokens=25, temperature=0.9, top_p=0.95, top_k=50, seed=7)
STEERED = GenerateOptions(
    max_tokens=14, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, no_repeat_ngram_size=2,
    logit_bias={14: -100.0, 70: 3.0}, min_tokens=6, min_p=0.02, temperature=0.7, seed=3,
)  # fmt: skip
OPTIONS = {"greedy": PLAIN, "sampled": SAMPLED, "steered": STEERED}


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


@pytest.fixture(scope="module")
def reference(model: Model) -> dict[str, list[Completion]]:
    """Every prompt alone, through the simplest sampler."""
    loaded = LoadedModel(model)
    return {name: [loaded.generate([p], options)[0] for p in PROMPTS] for name, options in OPTIONS.items()}


def told(listener: Listener, index: int = 0) -> tuple[object, ...]:
    usage = listener.usage(index)
    counts = usage.prompt_tokens, usage.completion_tokens
    return listener.text(index), listener.reason(index), listener.ids(index), *counts


def facts(answer: Completion) -> tuple[object, ...]:
    usage = answer.usage
    return answer.text, answer.finish_reason, answer.token_ids, usage.prompt_tokens, usage.completion_tokens


def written(desk: Desk, prompts: list[AnyPrompt], options: GenerateOptions, **fields: Any) -> list[Listener]:
    listeners = [desk.ask(prompt, options, **fields) for prompt in prompts]
    desk.run()
    return listeners


# the same answers, whatever the batch


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(
    "config",
    [
        {"max_rows": 1},
        {"max_rows": 16},
        {"max_rows": 3, "step_tokens": 5},
        {"max_rows": 8, "cache_tokens": 256},
        {"max_rows": 8, "prefix_cache": False},
    ],
    ids=["alone", "together", "in small pieces", "with little room", "no prefix cache"],
)
def test_answers_are_the_references_whatever_the_batch_the_pieces_and_the_room(
    kind: str, config: dict[str, Any], model: Model, reference: dict[str, list[Completion]]
) -> None:
    desk = Desk(model, **config)
    listeners = written(desk, PROMPTS, OPTIONS[kind])
    assert [told(listener) for listener in listeners] == [facts(answer) for answer in reference[kind]]
    if kind == "greedy":
        assert {answer.finish_reason for answer in reference[kind]} == {"stop", "length"}  # both ends are compared


def test_rows_that_had_to_give_way_write_what_they_would_have_written(model: Model) -> None:
    options = GenerateOptions(max_tokens=150, temperature=0.8, seed=1, ignore_eos=True)
    alone = [LoadedModel(model).generate([prompt], options)[0] for prompt in PROMPTS[:6]]
    desk = Desk(model, cache_tokens=448)
    listeners = written(desk, PROMPTS[:6], options)
    assert desk.status.preemptions > 1
    assert [told(listener) for listener in listeners] == [facts(answer) for answer in alone]


def test_rows_that_join_and_leave_in_the_middle_change_no_other_answer(model: Model) -> None:
    lengths = [3, 60, 1, 25, 2, 80, 7, 40, 1, 12]
    alone = [
        LoadedModel(model).generate([prompt], GenerateOptions(max_tokens=length))[0]
        for prompt, length in zip(PROMPTS, lengths, strict=False)
    ]
    desk = Desk(model, max_rows=4)
    listeners: list[Listener] = []
    dropped = desk.ask(PROMPTS[11], LONG)
    for prompt, length in zip(PROMPTS, lengths, strict=False):
        listeners.append(desk.ask(prompt, GenerateOptions(max_tokens=length)))
        desk.step(4)
    desk.cancel(dropped)
    desk.run()
    assert [told(listener) for listener in listeners] == [facts(answer) for answer in alone]
    assert dropped.reason() == "abort"


def test_sampling_without_a_seed_differs_from_request_to_request(model: Model) -> None:
    desk = Desk(model)
    listeners = written(desk, [PROMPTS[3]] * 4, GenerateOptions(max_tokens=30, temperature=1.0))
    assert len({listener.ids() for listener in listeners}) == 4


@pytest.mark.parametrize("changes", [{}, {"scheme": "int8"}], ids=["fp32", "int8"])
@pytest.mark.parametrize("options", [PLAIN, GenerateOptions(max_tokens=20, num_beams=3, n=2)], ids=["greedy", "beams"])
def test_packed_weights_write_the_same_alone_together_in_pieces_and_with_little_room(
    tiny_folder: Path, changes: dict[str, Any], options: GenerateOptions
) -> None:
    packed = load_model(tiny_folder, precision="fp32", is_packed=True, **changes)
    prompts = [*PROMPTS[:5], SHARED + "a", SHARED + "b"]
    alone = written(Desk(packed, max_rows=options.num_beams), prompts, options)
    expected = [told(one, index) for one in alone for index in range(options.n)]
    for config in ({"max_rows": 8}, {"max_rows": 6, "step_tokens": 7}, {"max_rows": 6, "cache_tokens": 640}):
        desk = Desk(packed, **config)
        found = written(desk, prompts, options)
        assert [told(one, index) for one in found for index in range(options.n)] == expected
        again = written(desk, prompts, options)  # now from the prefix cache
        assert [told(one, index) for one in again for index in range(options.n)] == expected


# prefixes


def test_what_was_read_before_is_not_read_again_and_changes_no_answer(model: Model) -> None:
    prompts: list[AnyPrompt] = [SHARED + word for word in WORDS[:5]]
    alone = [LoadedModel(model).generate([prompt], PLAIN)[0] for prompt in prompts]
    desk = Desk(model)
    assert [told(one) for one in written(desk, prompts, PLAIN)] == [facts(answer) for answer in alone]
    again = written(desk, prompts, PLAIN)
    assert [told(one) for one in again] == [facts(answer) for answer in alone]
    sizes = [len(model.chat.prompt_ids(prompt)) for prompt in prompts]  # pyright: ignore[reportArgumentType]
    assert [one.usage().cached_tokens for one in again] == [(size - 1) // 64 * 64 for size in sizes]
    assert desk.status.cached_tokens >= sum((size - 1) // 64 * 64 for size in sizes)
    assert desk.status.prompt_tokens + desk.status.cached_tokens == 2 * sum(sizes)


def test_the_next_turn_of_a_conversation_finds_the_answer_of_the_last(model: Model) -> None:
    desk = Desk(model)
    (first,) = written(desk, [SHARED], GenerateOptions(max_tokens=100, ignore_eos=True))
    ids = model.chat.prompt_ids(SHARED)
    (second,) = written(desk, [[*ids, *first.ids(), 70]], PLAIN)
    assert second.usage().cached_tokens == (len(ids) + 99) // 64 * 64 > len(ids)


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"cache_salt": "mine"}, {"tenant": "a", "cache_salt": "b"}, {"tenant": "ab"}]
)
def test_no_tenant_and_no_salt_finds_what_another_left(model: Model, other: dict[str, str]) -> None:
    desk = Desk(model)
    mine = {"tenant": "a"}
    assert written(desk, [SHARED], PLAIN, **mine)[0].usage().cached_tokens == 0
    assert written(desk, [SHARED], PLAIN, **mine)[0].usage().cached_tokens > 0
    assert written(desk, [SHARED], PLAIN, **other)[0].usage().cached_tokens == 0


def test_without_a_prefix_cache_nothing_is_found(model: Model) -> None:
    desk = Desk(model, prefix_cache=False)
    assert [one.usage().cached_tokens for one in written(desk, [SHARED] * 3, PLAIN)] == [0] * 3
    assert desk.status.cached_tokens == 0


# several answers to one prompt


@pytest.mark.parametrize("config", [{}, {"max_rows": 3, "step_tokens": 16}, {"cache_tokens": 320, "max_rows": 4}])
def test_several_answers_are_those_of_the_reference_and_read_the_prompt_once(
    model: Model, config: dict[str, Any]
) -> None:
    options = GenerateOptions(max_tokens=90, temperature=1.0, seed=5, n=3, ignore_eos=True)
    expected = LoadedModel(model).generate(PROMPTS[:4], options)
    desk = Desk(model, **config)
    listeners = written(desk, PROMPTS[:4], options)
    found = [told(listener, index) for listener in listeners for index in range(3)]
    assert found == [facts(answer) for answer in expected]
    assert len({listener.ids(index) for listener in listeners for index in range(3)}) == 12
    if not config:
        prompts = sum(listener.usage().prompt_tokens for listener in listeners)
        assert (desk.status.prompt_tokens, desk.status.preemptions) == (prompts, 0)


def test_several_answers_share_the_pages_of_their_prompt(model: Model) -> None:
    desk = Desk(model, cache_tokens=64 * 20)
    desk.ask(SHARED, GenerateOptions(max_tokens=4, temperature=1.0, n=4, seed=0, ignore_eos=True))
    desk.step(2)
    pages = -(-len(model.chat.prompt_ids(SHARED)) // 64)
    assert desk.status.running == 4
    assert desk.status.cache_usage * 20 == pytest.approx(pages + 3)  # each writes to a page of its own
    check_books(desk.writer)
    desk.run()


@pytest.mark.parametrize("config", [{}, {"max_rows": 4, "step_tokens": 16}, {"cache_tokens": 832, "max_rows": 4}])
@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(max_tokens=40, num_beams=4, n=2),
        GenerateOptions(max_tokens=70, num_beams=3, n=3, length_penalty=0.5, early_stopping="never"),
        GenerateOptions(
            max_tokens=12, num_beams=4, no_repeat_ngram_size=2, repetition_penalty=1.2, early_stopping=True
        ),
    ],
    ids=["plain", "long", "steered"],
)
def test_beams_are_those_of_the_reference(model: Model, options: GenerateOptions, config: dict[str, Any]) -> None:
    prompts = [*PROMPTS[:4], SHARED]
    expected = LoadedModel(model).generate(prompts, options)
    desk = Desk(model, **config)
    listeners = written(desk, prompts, options)
    found = [told(listener, index) for listener in listeners for index in range(options.n)]
    assert found == [facts(answer) for answer in expected]


@pytest.mark.parametrize(
    "options",
    [GenerateOptions(max_tokens=70, num_beams=3, n=3), GenerateOptions(max_tokens=30, temperature=0.9, seed=2, n=3)],
    ids=["beams", "samples"],
)
def test_what_is_read_of_a_copied_page_was_copied(model: Model, options: GenerateOptions) -> None:
    """Prompts that begin alike within a page, beams and samples: whatever else pages hold, answers stay the same."""
    prompts: list[AnyPrompt] = [SHARED + "silk", SHARED + "warm lining", SHARED + "silk dress"]
    expected = [LoadedModel(model).generate([prompt], options) for prompt in prompts]
    desk = Desk(model)
    assert desk.resident.lane is not None
    cache = desk.resident.lane.executor.cache
    for pool in (*cache.keys, *cache.values):
        pool.fill_(9.0)
    for prompt, answers in zip(prompts, expected, strict=True):
        (listener,) = written(desk, [prompt], options)
        found = [told(listener, index) for index in range(3)]
        assert found == [facts(answer) for answer in answers]


def test_a_beam_search_tells_what_it_found_in_the_cache(model: Model) -> None:
    desk = Desk(model)
    options = GenerateOptions(max_tokens=5, num_beams=2)
    assert [written(desk, [SHARED], options)[0].usage().cached_tokens > 0 for _ in range(2)] == [False, True]


def test_a_beam_search_that_finds_too_few_answers_says_so(model: Model) -> None:
    desk = Desk(model)
    every = {token: -100.0 for token in range(model.config.vocabulary_size) if token != 70}
    options = GenerateOptions(max_tokens=4, num_beams=2, n=2, logit_bias=every, no_repeat_ngram_size=1, ignore_eos=True)
    listener = desk.ask([70], options)
    desk.run()
    assert listener.ended.is_set()


# log-probabilities


def logprobs_of(model: Model, ids: list[int]) -> torch.Tensor:
    """What one plain pass over a text says: (T, V)."""
    with torch.inference_mode():
        return torch.log_softmax(LoadedModel(model).logits(torch.tensor([ids]))[0].float(), dim=-1)


def check_noted(noted: list[TokenLogprob], expected: torch.Tensor, ids: list[int], num_top: int) -> None:
    assert [one.token_id for one in noted] == ids
    for one, row in zip(noted, expected, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-4)
        best = torch.topk(row, num_top)
        assert [token for token, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "config", [{}, {"step_tokens": 10}, {"cache_tokens": 320, "max_rows": 3}], ids=["whole", "pieces", "little room"]
)
def test_served_log_probabilities_are_those_of_a_plain_pass(model: Model, config: dict[str, Any]) -> None:
    options = GenerateOptions(max_tokens=20, temperature=1.0, top_k=5, seed=2, logprobs=3, ignore_eos=True)
    desk = Desk(model, **{"max_rows": 4, **config})
    prompts: list[AnyPrompt] = [SHARED + "a", SHARED + "b", PROMPTS[4], PROMPTS[15], SHARED + "a"]
    for listener, prompt in zip(written(desk, prompts, options, prompt_logprobs=2), prompts, strict=True):
        before, ids = model.chat.prompt_ids(prompt), list(listener.ids())  # pyright: ignore[reportArgumentType]
        expected = logprobs_of(model, [*before, *ids])
        first, *others = listener.deltas()
        noted = list(first.prompt_logprobs)
        assert noted[0] is None
        check_noted([one for one in noted if one is not None], expected[: len(before) - 1], before[1:], 2)
        assert not any(delta.prompt_logprobs for delta in others)
        said = [one for delta in listener.deltas() for one in delta.logprobs]
        check_noted(said, expected[len(before) - 1 : -1], ids, 3)
        assert listener.usage().cached_tokens == 0  # it had to read all of the prompt


def test_every_token_that_a_log_probability_names_is_spelt(model: Model) -> None:
    (listener,) = written(
        Desk(model), ["the silk 丹"], GenerateOptions(max_tokens=6, logprobs=4), prompt_logprobs=1
    )  # fmt: skip
    for delta in listener.deltas():
        noted = [one for one in (*delta.logprobs, *delta.prompt_logprobs) if one is not None]
        assert {token for one in noted for token in (one.token_id, *dict(one.top))} <= set(delta.token_bytes)
    first = listener.deltas()[0]
    ids = model.chat.prompt_ids("the silk 丹")
    assert b"".join(first.token_bytes[token] for token in ids) == "the silk 丹".encode()


def test_each_of_several_answers_is_told_the_prompts_log_probabilities_once(model: Model) -> None:
    options = GenerateOptions(max_tokens=4, temperature=1.0, n=2, seed=1, ignore_eos=True)
    (listener,) = written(Desk(model), [PROMPTS[5]], options, prompt_logprobs=0)
    for index in range(2):
        first, *others = listener.deltas(index)
        assert len(first.prompt_logprobs) == listener.usage().prompt_tokens
        assert not any(delta.prompt_logprobs for delta in others)


# where an answer ends


def test_a_stop_text_across_token_borders_ends_the_answer_before_it(
    model: Model, reference: dict[str, list[Completion]]
) -> None:
    desk, cut = Desk(model), 0
    for prompt, answer in zip(PROMPTS, reference["greedy"], strict=True):
        ids = [i for i in answer.token_ids if i not in model.chat.tokenizer.end_ids]
        pieces = [model.chat.tokenizer.decode([i]) for i in ids]
        border = next((i for i in range(8, len(ids) - 1) if pieces[i].isascii() and pieces[i + 1].isascii()), None)
        if border is None:
            continue
        stop = pieces[border][-2:] + pieces[border + 1][:2]  # the end of one token and the start of the next
        options = GenerateOptions(max_tokens=40, stop=("never written", stop))
        (listener,) = written(desk, [prompt], options)
        assert (listener.text(), listener.reason()) == (answer.text[: answer.text.index(stop)], "stop")
        cut += 1
    assert cut >= 5


def test_an_end_token_waits_for_min_tokens(model: Model, reference: dict[str, list[Completion]]) -> None:
    ended = next(answer for answer in reference["greedy"] if answer.finish_reason == "stop")
    prompt, size = PROMPTS[reference["greedy"].index(ended)], ended.usage.completion_tokens
    desk = Desk(model)
    (listener,) = written(desk, [prompt], GenerateOptions(max_tokens=60, min_tokens=size + 5))
    assert listener.usage().completion_tokens >= size + 5


def test_an_answer_ends_where_its_cache_does(model: Model) -> None:
    desk = Desk(model, cache_tokens=128)
    (listener,) = written(desk, ["the navy"], GenerateOptions(max_tokens=400, ignore_eos=True))
    usage = listener.usage()
    assert listener.reason() == "length"
    assert usage.prompt_tokens + usage.completion_tokens == 128
    expected = LoadedModel(model).generate(["the navy"], GenerateOptions(max_tokens=400, ignore_eos=True))[0]
    assert listener.ids() == expected.token_ids[: usage.completion_tokens]


# grammars


COLOUR = Grammar(
    kind="json_schema",
    text=json.dumps(
        {
            "type": "object",
            "properties": {"colour": {"enum": ["navy", "红"]}, "size": {"type": "integer", "maximum": 99}},
            "required": ["colour", "size"],
            "additionalProperties": False,
        }
    ),
)


@pytest.mark.parametrize("options", [PLAIN, SAMPLED, GenerateOptions(max_tokens=60, temperature=1.0, seed=4, n=3)])
def test_answers_with_a_schema_are_valid_and_change_no_other(
    model: Model, reference: dict[str, list[Completion]], options: GenerateOptions
) -> None:
    desk = Desk(model, max_rows=16)
    options = GenerateOptions(max_tokens=60, temperature=options.temperature, seed=options.seed, n=options.n)
    held = [desk.ask(prompt, options, grammar=COLOUR) for prompt in PROMPTS[:4]]
    free = [desk.ask(prompt, PLAIN) for prompt in PROMPTS]
    desk.run()
    for listener, index in itertools.product(held, range(options.n)):
        assert listener.reason(index) == "stop"
        found = json.loads(listener.text(index))
        assert set(found) == {"colour", "size"}
        assert found["colour"] in ("navy", "红")
    assert [told(listener) for listener in free] == [facts(answer) for answer in reference["greedy"]]


def test_log_probabilities_of_an_answer_with_a_grammar_are_the_models_own(model: Model) -> None:
    options = GenerateOptions(max_tokens=30, logprobs=2)
    (listener,) = written(Desk(model), [PROMPTS[2]], options, grammar=Grammar(kind="choice", text='["navy", "red"]'))
    assert listener.text() in ("navy", "red")
    before, ids = model.chat.prompt_ids(PROMPTS[2]), list(listener.ids())  # pyright: ignore[reportArgumentType]
    expected = logprobs_of(model, [*before, *ids])
    said = [one for delta in listener.deltas() for one in delta.logprobs]
    check_noted(said, expected[len(before) - 1 : -1], ids, 2)


def test_an_answer_that_its_grammar_leads_nowhere_fails_alone(model: Model) -> None:
    desk = Desk(model)
    end = min(model.chat.tokenizer.end_ids)
    stuck = desk.ask(
        PROMPTS[1], GenerateOptions(max_tokens=20, min_tokens=20), grammar=Grammar(kind="choice", text='["navy"]')
    )
    other = desk.ask(PROMPTS[2], GenerateOptions(max_tokens=20, ignore_eos=True))
    desk.run()
    assert other.usage().completion_tokens == 20
    assert end not in other.ids()
    last = stuck.last()
    assert isinstance(last, RequestError) or stuck.text() == "navy"


# requests that end early


def test_a_cancelled_answer_ends_with_abort_and_what_was_certain_of_it(model: Model) -> None:
    desk = Desk(model)
    listener = desk.ask(PROMPTS[4], LONG)
    desk.step(20)
    desk.cancel(listener)
    assert listener.reason() == "abort"
    assert 0 < listener.usage().completion_tokens <= 20
    assert LoadedModel(model).generate([PROMPTS[4]], LONG)[0].text.startswith(listener.text().rstrip("\ufffd"))
    desk.cancel(listener)
    assert len([one for one in listener.deltas() if one.finish_reason]) == 1
    desk.run()


def test_a_cancelled_prompt_is_not_read_any_further(model: Model) -> None:
    desk = Desk(model, max_rows=2, step_tokens=10)
    listener = desk.ask(SHARED, LONG)
    desk.step(3)
    assert desk.status.cache_usage > 0
    desk.cancel(listener)
    assert (listener.reason(), listener.text(), listener.usage().completion_tokens) == ("abort", "", 0)
    assert desk.status.prompt_tokens == 30
    desk.run()


def test_a_cancelled_request_in_the_queue_never_starts(model: Model) -> None:
    desk = Desk(model, max_rows=1)
    first, second, third = (desk.ask(prompt, PLAIN) for prompt in PROMPTS[:3])
    desk.step()
    desk.cancel(second)
    assert (second.reason(), len(second.events), desk.status.waiting) == ("abort", 1, 1)
    desk.run()
    assert {first.reason(), third.reason()} <= {"stop", "length"}


@pytest.mark.parametrize("steps", [0, 1, 6])
@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(max_tokens=50, temperature=1.0, n=3, ignore_eos=True),
        GenerateOptions(max_tokens=50, num_beams=4, n=3, ignore_eos=True),
    ],
    ids=["samples", "beams"],
)
def test_each_of_several_answers_hears_that_its_request_was_cancelled(
    model: Model, options: GenerateOptions, steps: int
) -> None:
    desk = Desk(model)
    listener = desk.ask(PROMPTS[3], options)
    desk.step(steps)
    desk.cancel(listener)
    assert [listener.reason(index) for index in range(3)] == ["abort"] * 3
    desk.run()


def test_cancelling_a_request_of_another_model_does_nothing(model: Model) -> None:
    desk, other = Desk(model), Desk(model)
    listener = other.ask(PROMPTS[2], PLAIN)
    desk.cancel(listener)
    other.run()
    assert listener.reason() in ("stop", "length")


@pytest.mark.parametrize("steps", [0, 1, 5], ids=["queued", "in the prompt", "writing"])
def test_a_request_whose_time_is_over_hears_504_wherever_it_is(model: Model, steps: int) -> None:
    desk = Desk(model, max_rows=1, step_tokens=100)
    others = [desk.ask(PROMPTS[1], GenerateOptions(max_tokens=30, ignore_eos=True))] if not steps else []
    desk.step(2 * len(others))
    late = desk.ask(SHARED, LONG, timeout_s=60.0)
    desk.step(steps)
    assert not late.ended.is_set()
    desk.late_s = 59.0
    desk.step()
    assert not late.ended.is_set()
    desk.late_s = 61.0
    desk.step()
    error = late.error()
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (504, "timeout")
    desk.run()
    assert all(other.reason() == "length" for other in others)


def test_who_is_displaced_from_a_full_queue_hears_429(model: Model) -> None:
    desk = Desk(model, max_rows=1, max_waiting=3)
    running = desk.ask(PROMPTS[1], PLAIN, tenant="greedy")
    desk.step()
    mine = [desk.ask(PROMPTS[2], PLAIN, tenant="greedy") for _ in range(3)]
    refused = desk.ask(PROMPTS[2], PLAIN, tenant="greedy")
    assert isinstance(refused.error(), OverloadedError)
    other = desk.ask(PROMPTS[3], PLAIN, tenant="modest")
    error = mine[-1].error()
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s >= 1
    desk.run()
    assert all(one.reason() in ("stop", "length") for one in (running, other, *mine[:-1]))


# numbers


def test_the_status_counts_tokens_steps_and_waits(model: Model) -> None:
    desk = Desk(model, max_rows=4)
    listeners = written(desk, PROMPTS[:4], GenerateOptions(max_tokens=8, ignore_eos=True))
    status = desk.status
    assert status.prompt_tokens == sum(listener.usage().prompt_tokens for listener in listeners)
    assert status.generated_tokens == 32
    assert sum(size * count for size, count in status.steps_by_batch_size.items()) == 28 - status.accepted_tokens
    assert (status.queue_counts[-1], len(status.queue_counts)) == (4, len(status.queue_waits_s) + 1)
    assert status.queue_total_s >= 0.0
    assert set(status.seconds) == {"model", "sampling", "scheduling"}
    assert all(value > 0.0 for value in status.seconds.values())
