import itertools
from pathlib import Path

import pytest
import torch

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, LanguageModel
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel as Reference
from danlu.models.writing import Writing

from .peer import logits_of, save_llama

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [
    "The navy lace dress",
    "a",
    "I love it! " * 12 + "The soft black cotton top has pockets and",
    "面料是纯棉的",
    "The navy lace dress with a belt and a hood",
]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Reference:
    return Reference(load_model(tiny_folder, precision="fp32"))


def greedy_without_cache(tiny: Reference, prompt: str, count: int) -> list[int]:
    """The definition: the likeliest token after everything so far, read anew each time."""
    ids = tiny.model.chat.tokenizer.encode(prompt)
    written: list[int] = []
    while len(written) < count and not (written and written[-1] in tiny.model.chat.tokenizer.end_ids):
        written.append(int(tiny.logits(torch.tensor([ids + written]))[0, -1].argmax()))
    return written


def test_the_cache_changes_no_token(tiny: Reference) -> None:
    for prompt in PROMPTS:
        answer = tiny.generate([prompt], GenerateOptions(max_tokens=24))[0]
        assert list(answer.token_ids) == greedy_without_cache(tiny, prompt, 24)


def test_rows_of_different_lengths_are_written_as_if_alone(tiny: Reference) -> None:
    options = GenerateOptions(max_tokens=24)
    together = tiny.generate(PROMPTS, options)
    assert together == [tiny.generate([prompt], options)[0] for prompt in PROMPTS]
    assert len({answer.text for answer in together}) == len(PROMPTS)


def test_prompts_that_begin_alike_are_written_as_if_alone(tiny: Reference) -> None:
    """What rows have in common is read once; the answers are those of each row alone."""
    start = "The soft navy lace dress has a hood and pockets, "
    prompts = [start + end for end in ("a", "ruffles and", "with", start)] + [start, start]
    options = GenerateOptions(max_tokens=16)
    assert tiny.generate(prompts, options) == [tiny.generate([prompt], options)[0] for prompt in prompts]


def test_more_prompts_than_one_batch_come_back_in_their_order(tiny: Reference) -> None:
    prompts = [f"{n} navy dresses" for n in range(37)]
    options = GenerateOptions(max_tokens=4)
    counts: list[int] = []
    answers = tiny.generate(prompts, options, on_advance=counts.append)
    assert sum(counts) == 37
    assert answers == [tiny.generate([prompt], options)[0] for prompt in prompts]
    assert tiny.generate([]) == []


def test_greedy_answers_equal_those_of_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m")
    ours = Reference(load_model(tmp_path / "m", precision="fp32"))
    for prompt in PROMPTS[:3]:
        ids = ours.model.chat.tokenizer.encode(prompt)
        with torch.no_grad():
            theirs = peer.generate(
                torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0
            )
        answer = ours.generate([prompt], GenerateOptions(max_tokens=24))[0]
        assert list(answer.token_ids) == theirs[0, len(ids) :].tolist()


def test_a_conversation_is_continued_after_the_template(tiny: Reference) -> None:
    messages = [{"role": "user", "content": "A navy dress."}]
    prompt_ids = tiny.model.chat.prompt_ids(messages)
    answer = tiny.generate([messages], GenerateOptions(max_tokens=3))[0]
    assert answer.usage.prompt_tokens == len(prompt_ids)
    assert answer.usage.completion_tokens == len(answer.token_ids) == 3
    assert answer.token_ids[0] == int(tiny.logits(torch.tensor([prompt_ids]))[0, -1].argmax())


def test_streamed_pieces_join_to_the_answer(tiny: Reference) -> None:
    assert isinstance(tiny, LanguageModel)
    for prompt, options in itertools.product(
        PROMPTS, [GenerateOptions(max_tokens=20), GenerateOptions(max_tokens=20, temperature=1.5, seed=3)]
    ):
        deltas = list(tiny.stream(prompt, options))
        answer = tiny.generate([prompt], options)[0]
        assert "".join(delta.text for delta in deltas) == answer.text
        assert (deltas[-1].finish_reason, deltas[-1].usage) == (answer.finish_reason, answer.usage)
        assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_a_seed_repeats_a_sample_in_any_company(tiny: Reference) -> None:
    options = GenerateOptions(max_tokens=12, temperature=1.0, seed=11)
    alone = tiny.generate([PROMPTS[0]], options)[0]
    assert tiny.generate(PROMPTS, options)[0] == alone
    others = {
        tiny.generate([PROMPTS[0]], GenerateOptions(max_tokens=12, temperature=1.0, seed=s))[0].text for s in range(5)
    }
    assert len(others) > 1


def scripted(tiny: Reference, text: str, **options: object) -> tuple[list[str], Writing]:
    """A writing that is given the tokens of ``text``, then the end token; returns the pieces."""
    tokenizer = tiny.model.chat.tokenizer
    writing = Writing([1], GenerateOptions(max_tokens=200, **options), tokenizer, 1024)
    pieces: list[str] = []
    for token in [*tokenizer.encode(text), *tokenizer.end_ids]:
        if writing.finish_reason is None:
            pieces.append(writing.push(token).text)
    return pieces, writing


def test_the_end_token_ends_an_answer_and_is_not_part_of_its_text(tiny: Reference) -> None:
    pieces, writing = scripted(tiny, "A dress, 很好 👗.")
    assert (writing.text, writing.finish_reason, "".join(pieces)) == ("A dress, 很好 👗.", "stop", writing.text)
    assert writing.token_ids[-1] in tiny.model.chat.tokenizer.end_ids


def test_a_stop_text_is_cut_off_wherever_tokens_end(tiny: Reference) -> None:
    for stop in (" lace", "vy l", "dress", "很好", "\n\n"):
        text = "The navy lace dress, 很好\n\nand more"
        pieces, writing = scripted(tiny, text, stop=(stop,))
        assert writing.text == "".join(pieces) == text[: text.index(stop)]
        assert writing.finish_reason == "stop"


def test_text_that_only_began_like_a_stop_is_given_out(tiny: Reference) -> None:
    pieces, writing = scripted(tiny, "a lac and a lacy lac", stop=("lace",))
    assert writing.text == "".join(pieces) == "a lac and a lacy lac"


def test_the_earliest_of_several_stops_counts(tiny: Reference) -> None:
    assert scripted(tiny, "one two three", stop=("three", "two"))[1].text == "one "


def test_an_answer_ends_where_the_context_does(tiny: Reference) -> None:
    context = tiny.model.config.context_length
    prompt = "a" * 5000
    ids = tiny.model.chat.tokenizer.encode(prompt)[: context - 3]
    writing = Writing(ids, GenerateOptions(max_tokens=100), tiny.model.chat.tokenizer, context)
    assert writing.limit == 3
    for token in (70, 71, 72):
        writing.push(token)
    assert writing.finish_reason == "length"


def test_a_prompt_that_fills_the_context_is_refused(tiny: Reference) -> None:
    with pytest.raises(
        RequestError, match=r"The prompt has .* tokens; the model's context is 1024, answer included"
    ) as e:
        tiny.generate(["navy " * 3000])
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match=r"The prompt is empty. Send at least one token"):
        tiny.generate([""])


# ---- several answers, log-probabilities ------------------------------------------------------------------------------


def test_samples_of_one_prompt_are_those_of_the_prompt_alone(tiny: Reference) -> None:
    """They read the prompt once, and each draws from a generator of its own."""
    options = {"max_tokens": 10, "temperature": 1.2, "top_k": 50, "seed": 7}
    answers = tiny.generate(PROMPTS, GenerateOptions(**options, n=3))  # type: ignore[arg-type]
    assert len(answers) == 3 * len(PROMPTS)
    assert answers[::3] == tiny.generate(PROMPTS, GenerateOptions(**options))  # type: ignore[arg-type]
    assert len({answer.text for answer in answers[:3]}) == 3
    greedy = tiny.generate(PROMPTS[:2], GenerateOptions(max_tokens=6, n=2))
    assert greedy[0] == greedy[1]
    with pytest.raises(RequestError, match="n is 2, but a stream has one answer"):
        list(tiny.stream("a", GenerateOptions(n=2)))


def test_log_probabilities_of_an_answer_are_its_score(tiny: Reference) -> None:
    (answer,) = tiny.generate(["The navy"], GenerateOptions(max_tokens=1, logprobs=3))
    (token,) = answer.logprobs
    exact = torch.log_softmax(tiny.logits(torch.tensor([tiny.model.chat.tokenizer.encode("The navy")]))[0, -1], dim=0)
    assert token.logprob == pytest.approx(float(exact.max()), abs=1e-5)
    assert [index for index, _ in token.top] == torch.topk(exact, 3).indices.tolist()
    options = GenerateOptions(max_tokens=9, logprobs=0)
    deltas = list(tiny.stream("The navy", options))
    assert (
        tuple(item for delta in deltas for item in delta.logprobs) == tiny.generate(["The navy"], options)[0].logprobs
    )


def test_penalised_greedy_answers_equal_those_of_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m")
    ours = Reference(load_model(tmp_path / "m", precision="fp32"))
    options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
    for prompt in PROMPTS[:3]:
        ids = ours.model.chat.tokenizer.encode(prompt)
        theirs = peer.generate(
            torch.tensor([ids]), max_new_tokens=24, min_new_tokens=20, do_sample=False, pad_token_id=0, **options
        )  # type: ignore[call-overload]
        answer = ours.generate([prompt], GenerateOptions(max_tokens=24, min_tokens=20, **options))[0]  # type: ignore[arg-type]
        assert list(answer.token_ids) == theirs[0, len(ids) :].tolist()


# ---- scoring ---------------------------------------------------------------------------------------------------------


def test_a_score_is_the_sum_of_the_log_probabilities_of_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m")
    ours = Reference(load_model(tmp_path / "m", precision="fp32"))
    tokenizer = ours.model.chat.tokenizer
    prompt, answer = tokenizer.encode("The navy"), tokenizer.encode(" lace dress, soft")
    logprobs = torch.log_softmax(logits_of(peer, prompt + answer), dim=-1)
    expected = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    (score,) = ours.score(["The navy"], [" lace dress, soft"])
    assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert (score.logprob, score.num_tokens) == (pytest.approx(sum(expected), abs=1e-3), len(answer))
    assert not score.is_greedy


def test_what_greedy_writes_scores_as_greedy(tiny: Reference) -> None:
    ids = tiny.generate(["navy"], GenerateOptions(max_tokens=1))[0].token_ids
    text = tiny.model.chat.tokenizer.decode(ids)
    assert tiny.score(["navy"], [text])[0].is_greedy == (tiny.model.chat.tokenizer.encode(text) == list(ids))


def test_a_score_of_nothing_or_of_too_much_is_refused(tiny: Reference) -> None:
    with pytest.raises(RequestError, match="Prompt and continuation must both have at least one token"):
        tiny.score(["navy"], [""])
    with pytest.raises(RequestError, match=r"Prompt and continuation have .* tokens; the context is 1024") as error:
        tiny.score(["navy"], [" lace 1" * 2000])
    assert error.value.code == "context_length_exceeded"
