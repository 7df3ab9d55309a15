"""Guesses are computed where they pay, and change no answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.writing import Writing
from danlu.serve.engine.answer import Answer, Asked
from danlu.serve.engine.request import Caller, Grammar, WriteRequest
from danlu.serve.engine.row import Row
from danlu.serve.engine.speculate import Speculator, StepCosts
from danlu.serve.engine.ticket import EngineTicket
from tests.serve.engine.hearing import Desk, Listener

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]

COPIED = [11, 12, 13, 14, 15, 16, 17, 18, 11, 12, 13]
"""After these, what followed the last time is likely to come."""


def measured(
    base_ms: float, token_ms: float, *, sizes: tuple[int, ...] = (1, 2, 5, 9), noise: float = 0.0
) -> StepCosts:
    costs, numbers = StepCosts(), random.Random(0)
    for _ in range(60):
        for size in sizes:
            costs.note(size, (base_ms + token_ms * size) / 1000 * (1.0 + noise * numbers.random()))
    return costs


def writing_row(ids: list[int], **options: Any) -> Row:
    options = {"max_tokens": 50, **options}
    writing = Writing(ids[:-1], GenerateOptions(**options), None, 4096)
    writing.push(ids[-1])
    ticket = EngineTicket(Caller(), 1.0, lambda event: None, lambda: None)
    request = WriteRequest(model="m", prompt="", options=writing.options)
    answer = Answer(asked=Asked(request=request, ticket=ticket, num_left=1), writing=writing)
    row = Row(ids=list(ids), max_tokens=4096, request=answer)
    row.is_writing, row.state, row.computed = True, "running", len(ids) - 1
    return row


def proposed(costs: StepCosts, num_rows: int, ids: list[int], **options: Any) -> list[int]:
    """How many drafts each of so many rows gets."""
    speculator = Speculator()
    speculator.costs = costs
    rows = [writing_row(ids, **options) for _ in range(num_rows)]
    speculator.propose(rows)
    return [len(row.drafts) for row in rows]


# what pays


def test_what_one_more_token_costs_is_found_from_steps_of_different_sizes() -> None:
    costs = measured(4.0, 0.5)
    assert costs.per_token == pytest.approx(0.0005, rel=0.02)
    assert costs.seconds(20) == pytest.approx(0.014, rel=0.02)
    assert measured(4.0, 0.5, noise=0.2).per_token == pytest.approx(0.00055, rel=0.3)


def test_a_step_that_another_process_held_up_hardly_counts() -> None:
    costs = measured(4.0, 0.5)
    costs.note(9, 5.0)
    assert costs.seconds(1) < 0.006
    assert costs.per_token < 0.001


def test_guesses_are_computed_where_a_token_adds_little_and_not_where_it_adds_a_step() -> None:
    assert proposed(measured(4.0, 0.1), 1, COPIED)[0] >= 2
    assert proposed(measured(0.1, 4.0), 1, COPIED) == [0]
    assert proposed(measured(4.0, 0.1), 1, [1, 2, 3, 4, 5]) == [0], "nothing repeats"


def test_with_many_answers_guesses_turn_themselves_off() -> None:
    alone, few, many = (measured(4.0, 0.4, sizes=(n, n + 1, n + 8)) for n in (1, 8, 64))
    assert proposed(alone, 1, COPIED)[0] > max(proposed(few, 8, COPIED))
    assert sum(proposed(many, 64, COPIED)) == 0


def test_before_anything_is_measured_a_likely_guess_is_tried() -> None:
    assert proposed(StepCosts(), 1, COPIED)[0] > 0
    costs = StepCosts()
    costs.note(1, 0.004)
    assert proposed(costs, 1, COPIED)[0] > 0
    assert costs.least_chance(1, 1.0) < 0.2


def test_an_answer_that_asks_for_guesses_gets_them_up_to_its_number() -> None:
    assert proposed(measured(0.1, 4.0), 1, COPIED, lookup_tokens=3) == [3]
    assert proposed(measured(0.1, 4.0), 1, COPIED, lookup_tokens=60) == [8], "as many as there are"


def test_no_answer_is_guessed_beyond_its_end() -> None:
    assert proposed(measured(4.0, 0.0), 1, COPIED, max_tokens=3) == [1]
    assert proposed(measured(4.0, 0.0), 1, COPIED, max_tokens=2) == [0]


def test_guessing_is_right_also_where_it_was_not_computed() -> None:
    """A row whose guesses cost too much keeps count, and goes on with them when they become cheap."""
    text = list(range(100, 140))
    row, speculator = writing_row([*text, text[0]], max_tokens=90), Speculator()
    for token in text[1:30]:
        speculator.costs = measured(0.01, 4.0, sizes=(1, 9))
        speculator.propose([row])
        assert row.drafts == []
        row.ids.append(token)
        row.computed += 1
    speculator.costs = measured(4.0, 0.2)
    speculator.propose([row])
    assert row.drafts[:5] == text[30:35]


# the same answers


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "asked for": {"lookup_tokens": 5},
    "sampled": {"temperature": 0.4, "top_p": 0.9, "seed": 5},
    "steered": {"temperature": 0.5, "seed": 5, "repetition_penalty": 1.05, "frequency_penalty": 0.01, "min_tokens": 9},
    "with log-probabilities": {"temperature": 0.3, "seed": 1, "logprobs": 2},
    "several": {"temperature": 0.4, "seed": 2, "n": 3},
    "until a word": {"stop": ("navy",)},
}
PROMPT = "navy silk dress, navy silk dress, navy silk dress, black silk dress, black silk dress, navy silk"


def told(listener: Listener, num_answers: int) -> list[object]:
    found: list[object] = []
    for index in range(num_answers):
        noted = [one for delta in listener.deltas(index) for one in delta.logprobs]
        ids = [one.token_id for one in noted]
        found.append((listener.text(index), listener.reason(index), listener.ids(index), ids))
    return found


def values_of(listener: Listener, num_answers: int) -> list[float]:
    noted = [one for index in range(num_answers) for delta in listener.deltas(index) for one in delta.logprobs]
    return [value for one in noted for value in (one.logprob, *(logprob for _, logprob in one.top))]


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("config", [{}, {"max_rows": 4, "cache_tokens": 512, "step_tokens": 9}], ids=["roomy", "tight"])
def test_guesses_change_no_answer(
    kind: str, config: dict[str, Any], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerateOptions(**{"max_tokens": 60, **ASKED[kind]})
    prompts = [PROMPT, [70, 71, 72, 73] * 9, "the " * 30, PROMPT[20:]]

    def answers(**more: Any) -> tuple[list[object], list[float], Desk]:
        desk = Desk(model, **{**config, **more})
        listeners = [desk.ask(prompt, options) for prompt in prompts]
        desk.run()
        values = [value for listener in listeners for value in values_of(listener, options.n)]
        return [told(listener, options.n) for listener in listeners], values, desk

    plain, values, desk = answers(speculation=False)
    assert desk.status.drafted_tokens == 0
    monkeypatch.setattr(StepCosts, "least_chance", lambda *_: 0.0)  # always compute what may be right
    guessed, guessed_values, desk = answers()
    assert guessed == plain
    assert guessed_values == pytest.approx(values, abs=1e-4)
    assert desk.status.accepted_tokens > 0
    assert desk.status.drafted_tokens > desk.status.accepted_tokens


def test_a_grammars_only_way_on_is_guessed_and_checked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "least_chance", lambda *_: 0.0)
    grammar = Grammar(kind="choice", text='["navy silk dress with pockets", "ivory velvet jacket with sleeves"]')

    def answer(**config: Any) -> tuple[str, Desk]:
        desk = Desk(model, **config)
        listener = desk.ask("Which one?", GenerateOptions(max_tokens=60, temperature=1.0, seed=3), grammar=grammar)
        desk.run()
        assert listener.reason() == "stop"
        return listener.text(), desk

    plain, _ = answer(speculation=False)
    guessed, desk = answer()
    assert guessed == plain
    assert desk.status.accepted_tokens > 3
    assert sum(desk.status.steps_by_batch_size.values()) < desk.status.generated_tokens - 3


def test_what_was_guessed_right_is_found_by_the_next_turn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "least_chance", lambda *_: 0.0)
    desk = Desk(model)
    first = desk.ask(PROMPT, GenerateOptions(max_tokens=150, ignore_eos=True, repetition_penalty=0.3))
    desk.run()
    assert desk.status.accepted_tokens > 30
    ids = model.chat.prompt_ids(PROMPT)
    again = desk.ask([*ids, *first.ids()], GenerateOptions(max_tokens=3))
    desk.run()
    assert again.usage().cached_tokens == (len(ids) + 149) // 64 * 64


def test_steps_are_timed_only_while_no_prompt_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    monkeypatch.setattr(StepCosts, "note", lambda costs, num_tokens, seconds: noted.append(num_tokens))
    desk = Desk(model)
    desk.ask([70, 71, 3, 9, 30, 8], GenerateOptions(max_tokens=5, ignore_eos=True))
    desk.run()
    assert sum(noted) >= 4
    assert max(noted) < 6


def test_seconds_are_never_negative() -> None:
    costs = StepCosts()
    for size, seconds in ((9, 0.001), (1, 0.02), (9, 0.001), (1, 0.02)):
        costs.note(size, seconds)
    assert costs.per_token == 0.0
    assert costs.seconds(1000) > 0.0
    assert torch.isfinite(torch.tensor(costs.least_chance(1, 1.0)))
