"""How one pass becomes the next tokens of many answers: as the reference picks, each with its own rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.sampling import pick_tokens
from danlu.models.writing import Writing
from danlu.serve.engine.answer import Answer, Asked, logprobs_of_prompt, pick, pick_in_turn
from danlu.serve.engine.constrain import Constraint, GrammarVocabulary, compile_grammar
from danlu.serve.engine.request import Grammar, WriteRequest
from danlu.serve.engine.ticket import EngineTicket

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = [
    GenerateOptions(),
    GenerateOptions(logprobs=3),
    GenerateOptions(temperature=0.9, seed=1),
    GenerateOptions(temperature=1.3, top_p=0.8, top_k=30, min_p=0.01, seed=2, logprobs=0),
    GenerateOptions(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={3: 9.0}),
    GenerateOptions(temperature=0.7, seed=5, no_repeat_ngram_size=2, min_tokens=4),
]


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


def made(model: Model, options: GenerateOptions, grammar: Grammar | None = None) -> Answer:
    request = WriteRequest(model="m", prompt=[5, 6, 7], options=options, grammar=grammar)
    ticket = EngineTicket(request.caller, 1.0, print, lambda: None)
    tokenizer = model.chat.tokenizer.target
    constraint = None
    if grammar is not None:
        constraint = Constraint(compile_grammar(grammar, GrammarVocabulary.of(tokenizer)))
    writing = Writing([5, 6, 7], options, tokenizer, 512, defaults=model.generation)
    return Answer(asked=Asked(request=request, ticket=ticket, num_left=1), writing=writing, constraint=constraint)


def said(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 420, generator=torch.Generator().manual_seed(seed)) * 4.0


def test_tokens_and_log_probabilities_are_those_that_the_reference_picks(model: Model) -> None:
    answers = [made(model, options) for options in OPTIONS]
    others = [made(model, options).writing for options in OPTIONS]
    for step in range(8):
        logits = said(len(OPTIONS), step)
        tokens = pick(logits.clone(), answers)
        assert tokens == pick_tokens(logits, others)
        for answer, other, token in zip(answers, others, tokens, strict=True):
            answer.writing.push(token)
            other.push(token)
            assert answer.writing.logprobs == other.logprobs


def test_a_grammar_binds_its_own_answer_only_and_goes_on_with_what_was_picked(model: Model) -> None:
    grammar = Grammar(kind="choice", text='["navy", "red"]')
    bound, free = made(model, GenerateOptions(logprobs=1), grammar), made(model, GenerateOptions())
    ids: list[int] = []
    for step in range(8):
        logits = said(2, step)
        likeliest = logits.argmax(dim=-1).tolist()
        token, other = pick(logits, [bound, free])
        assert other == likeliest[1]
        ids.append(token)
        bound.writing.push(token, is_complete=bound.is_complete)
        if bound.is_complete:
            break
    assert model.chat.tokenizer.decode(ids) in ("navy", "red")
    assert bound.problem is None
    assert bound.writing.finish_reason == "stop"
    noted = bound.writing.logprobs[0]
    assert noted.top[0][1] >= noted.logprob  # before the grammar took its choice away


def test_a_grammar_that_is_not_in_force_yet_binds_nothing(model: Model) -> None:
    answer = made(model, GenerateOptions(), Grammar(kind="choice", text='["x"]', after="<call>"))
    logits = said(1, 1)
    likeliest = int(logits.argmax())
    assert pick(logits, [answer]) == [likeliest]


@pytest.mark.parametrize(
    "options", [GenerateOptions(temperature=0.8, seed=3), GenerateOptions(temperature=0.8, top_k=400)]
)
def test_draws_within_a_grammar_come_as_often_as_among_its_tokens_alone(model: Model, options: GenerateOptions) -> None:
    answer = made(model, options, Grammar(kind="choice", text='["n", "r", "b"]'))
    assert answer.constraint is not None
    logits = said(1, 11) / 4.0
    ids = [index for index in range(420) if answer.constraint.allows(index)]
    wanted = torch.softmax(logits[0, ids] / 0.8, dim=-1)
    counts = dict.fromkeys(ids, 0)
    for _ in range(3000):
        other = replace(answer, constraint=answer.constraint.fork())
        counts[pick(logits.clone(), [other])[0]] += 1
    assert [counts[index] / 3000 for index in ids] == pytest.approx(wanted.tolist(), abs=0.04)


@pytest.mark.parametrize("options", [*OPTIONS, GenerateOptions(temperature=0.9, seed=4, top_k=20)])
@pytest.mark.parametrize("is_bound", [False, True])
def test_tokens_in_turn_are_those_picked_one_by_one(model: Model, options: GenerateOptions, is_bound: bool) -> None:
    grammar = Grammar(kind="regex", text="[a-z ]{5,40}") if is_bound else None
    one, other = made(model, options, grammar), made(model, options, grammar)
    logits = said(6, 21)
    ids = [pick(logits[row : row + 1].clone(), [one])[0] for row in range(4)]
    in_turn = pick_in_turn(logits.clone(), other)
    assert [next(in_turn) for _ in range(4)] == ids
    if is_bound:
        assert one.constraint is not None
        assert other.constraint is not None
        assert other.constraint.allowed().tolist() == one.constraint.allowed().tolist()  # neither went any further


def test_an_answer_that_breaks_its_grammar_has_a_problem_and_the_others_do_not(model: Model) -> None:
    ends = model.chat.tokenizer.end_ids
    forbidden = GenerateOptions(logit_bias=dict.fromkeys(range(420), -100.0), min_tokens=3)
    stuck = made(model, forbidden, Grammar(kind="regex", text=""))  # only an end is allowed, and no end yet
    free = made(model, GenerateOptions())
    logits = said(2, 3)
    likeliest = int(logits[1].argmax())
    assert pick(logits, [stuck, free])[1] == likeliest
    assert isinstance(stuck.problem, RequestError) or stuck.is_complete
    assert free.problem is None
    assert ends


@pytest.mark.parametrize("num_top", [0, 1, 5, 1000])
def test_log_probabilities_of_a_prompt_are_those_of_its_own_tokens(num_top: int) -> None:
    logits = said(4, 1)
    found = logprobs_of_prompt(logits, [1, 419, 0, 7], num_top)
    expected = torch.log_softmax(logits, dim=-1)
    for row, (one, token) in enumerate(zip(found, [1, 419, 0, 7], strict=True)):
        assert one is not None
        assert (one.token_id, one.logprob) == (token, pytest.approx(float(expected[row, token])))
        best = expected[row].sort(descending=True)
        assert len(one.top) == min(num_top, 420)
        assert [value for _, value in one.top] == pytest.approx(best.values[: len(one.top)].tolist())
