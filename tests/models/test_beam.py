"""Beam search equals transformers' token for token, scores included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM, T5Config
from transformers import T5ForConditionalGeneration as T5

from danlu.core.errors import RequestError
from danlu.core.records import Completion, GenerateOptions
from danlu.models import beam
from danlu.models.beam import Beam, Search
from danlu.models.defaults import GenerationDefaults
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.writing import Writing
from tests.models.case import randomised
from tests.models.cases import recurrent
from tests.models.cases.decoders import SIZES
from tests.models.cases.seq2seq import BART_SIZES, T5_SIZES, padded
from tests.models.peer import some_ids

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [some_ids(length, seed=length, vocabulary=90) for length in (9, 3, 14)]


class Peer:
    """One model here and there."""

    def __init__(self, peer: Any, folder: Path) -> None:
        self.peer = peer
        self.peer.save_pretrained(folder)
        self.ours = LoadedModel(load_model(folder, precision="fp32"))

    def theirs(self, prompts: list[list[int]], **options: Any) -> tuple[list[list[int]], list[float]]:
        """Answers without padding, and their scores."""
        is_pair = self.peer.config.is_encoder_decoder
        ids, mask = padded(prompts, 0, "right" if is_pair else "left")
        names = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "n": "num_return_sequences"}
        found = self.peer.generate(
            ids, attention_mask=mask, do_sample=False, return_dict_in_generate=True, output_scores=True,
            **{names.get(name, name): value for name, value in options.items()},
        )  # fmt: skip
        start = 1 if is_pair else ids.shape[1]
        return [row[start:].tolist() for row in found.sequences], found.sequences_scores.tolist()

    def check(self, **options: Any) -> list[Completion]:
        """All prompts together."""
        expected, scores = self.theirs(PROMPTS, **options)
        answers = self.ours.generate(PROMPTS, GenerateOptions(**options))
        for answer, tokens in zip(answers, expected, strict=True):
            count = len(answer.token_ids)
            assert list(answer.token_ids) == tokens[:count]
            assert len(set(tokens[count:])) <= 1, "padding"
            assert count == len(tokens) or tokens[count - 1] in self.ours.model.generation.end_ids
        assert [answer.score for answer in answers] == pytest.approx(scores, abs=1e-4)
        return answers


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Peer:
    torch.manual_seed(0)
    peer = randomised(LlamaForCausalLM(LlamaConfig(**{**SIZES, "eos_token_id": [2, 11, 40, 41, 42]})).eval())
    return Peer(peer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Peer:
    torch.manual_seed(3)
    peer: Any = BartForConditionalGeneration(BartConfig(**{**BART_SIZES, "decoder_layers": 2})).eval()
    peer.generation_config.forced_bos_token_id = 0
    randomised(peer).final_logits_bias.copy_(torch.randn(1, 100))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return Peer(peer, tmp_path_factory.mktemp("bart"))


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_a_decoders_beams_are_those_of_transformers(
    decoder: Peer, early_stopping: bool | str, length_penalty: float
) -> None:
    answers = decoder.check(
        num_beams=4, n=3, max_tokens=12, early_stopping=early_stopping, length_penalty=length_penalty
    )
    assert len(answers) == 3 * len(PROMPTS)


def test_some_beams_end_before_others(decoder: Peer) -> None:
    answers = decoder.ours.generate(PROMPTS, GenerateOptions(num_beams=4, n=3, max_tokens=12, length_penalty=0.0))
    assert len({len(answer.token_ids) for answer in answers}) > 1


@pytest.mark.parametrize("early_stopping", [True, False])
def test_bart_with_4_beams_and_30_tokens_is_that_of_transformers(bart: Peer, early_stopping: bool) -> None:
    """The summariser's own settings: 30 tokens with the start, forced first and last tokens."""
    answers = bart.check(
        num_beams=4, max_tokens=29, length_penalty=2.0, early_stopping=early_stopping, no_repeat_ngram_size=3,
        min_tokens=5,
    )  # fmt: skip
    assert all(answer.token_ids[0] == 0 for answer in answers)
    assert all(answer.token_ids[-1] == 2 for answer in answers)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "n": 3, "max_tokens": 12, "length_penalty": 0.0},
        {"num_beams": 3, "max_tokens": 29, "no_repeat_ngram_size": 2, "min_tokens": 8},
    ],
    ids=["plain", "forbidding"],
)
def test_the_kernels_change_no_answer(decoder: Peer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels = decoder.check(**options)
    monkeypatch.setattr(beam, "load_sampler", lambda: None)
    assert [one.token_ids for one in decoder.check(**options)] == [one.token_ids for one in with_kernels]


def search_of(keep: int, forbidden: Sequence[int]) -> Search:
    """One beam of three that has said nothing, and must not say some tokens."""
    options = GenerateOptions(num_beams=keep // 2, min_tokens=1, ignore_eos=True)
    defaults = GenerationDefaults(end_ids=frozenset(forbidden))
    return Search(Writing([1], options, None, 9, defaults=defaults), None)


@pytest.mark.parametrize("num_forbidden", [0, 3, 500])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_beam_goes_on_with_the_likeliest_tokens_that_it_may_say(
    num_forbidden: int, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernels:
        monkeypatch.setattr(beam, "load_sampler", lambda: None)
    logits = 3.0 * torch.randn(5000, generator=torch.Generator().manual_seed(1))
    order = logits.argsort(descending=True).tolist()
    forbidden = order[1 : 1 + num_forbidden]
    found = search_of(6, forbidden).candidates(0, logits)
    expected = [token for token in order if token not in forbidden][:6]
    assert [token for token, _ in found] == expected
    logprobs = torch.log_softmax(logits, dim=-1)[expected].tolist()
    assert [logprob for _, logprob in found] == pytest.approx(logprobs, abs=1e-5)


def test_what_is_impossible_is_no_candidate() -> None:
    logits = torch.full((70,), -torch.inf)
    logits[[3, 60]] = torch.tensor([1.0, 2.0])
    assert [token for token, _ in search_of(6, []).candidates(0, logits)] == [60, 3]


def test_among_equals_the_earlier_beams_likelier_token_comes_first() -> None:
    search = search_of(6, [])
    search.beams = [Beam((5,), -1.0), Beam((6,), -2.0)]
    assert search.advance([[(8, -2.0), (7, -2.0)], [(4, -1.0), (3, -1.5)]]) == [0, 0, 1]
    assert [one.token_ids for one in search.beams] == [(5, 8), (5, 7), (6, 4)]


@pytest.mark.parametrize("num_beams", [2, 7])
def test_penalties_act_on_beams_as_in_transformers(decoder: Peer, num_beams: int) -> None:
    answers = decoder.check(num_beams=num_beams, max_tokens=10, repetition_penalty=1.4, no_repeat_ngram_size=2)
    free = decoder.ours.generate(PROMPTS, GenerateOptions(num_beams=num_beams, max_tokens=10))
    assert [answer.token_ids for answer in answers] != [answer.token_ids for answer in free]


def test_t5_beams_are_those_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    peer = randomised(T5(T5Config(**{**T5_SIZES, "num_decoder_layers": 2})).eval())
    answers = Peer(peer, tmp_path).check(num_beams=3, n=3, max_tokens=9)
    assert len({answer.token_ids for answer in answers}) > 3, "prompts whose answers are alike prove little"


def test_a_prompt_is_searched_alone_as_among_others(decoder: Peer) -> None:
    options = GenerateOptions(num_beams=3, max_tokens=12)
    together = decoder.ours.generate(PROMPTS, options)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = decoder.ours.generate([prompt], options)
        assert alone.token_ids == answer.token_ids
        assert alone.score == pytest.approx(answer.score, abs=1e-5)


def test_more_beams_than_tokens_to_choose_from_still_end(decoder: Peer) -> None:
    answers = decoder.ours.generate(PROMPTS[:1], GenerateOptions(num_beams=64, n=64, max_tokens=2))
    assert len({answer.token_ids for answer in answers}) == 64


def test_recurrent_layers_follow_their_beams(tmp_path: Path) -> None:
    """Each answer's score is the sum of what the model says of its tokens when it reads them at once."""
    recurrent.CASES["qwen3-next"].make().save_pretrained(tmp_path)
    ours = LoadedModel(load_model(tmp_path, precision="fp32"))
    answers = ours.generate(PROMPTS, GenerateOptions(num_beams=3, n=3, max_tokens=7, length_penalty=0.0))
    for number, answer in enumerate(answers):
        prompt = PROMPTS[number // 3]
        logits = ours.logits(torch.tensor([prompt + list(answer.token_ids)]))[0, len(prompt) - 1 : -1]
        exact = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer.token_ids)[:, None]).sum()
        assert answer.score == pytest.approx(float(exact), abs=1e-3)


def test_a_stop_text_ends_a_beam(tiny_folder: Path) -> None:
    tiny = LoadedModel(load_model(tiny_folder, precision="fp32"))
    options: dict[str, Any] = {"num_beams": 3, "max_tokens": 20}
    (whole,) = tiny.generate(["The navy"], GenerateOptions(**options))
    stop = whole.text[2:4]
    (cut,) = tiny.generate(["The navy"], GenerateOptions(**options, stop=(stop,)))
    assert stop not in cut.text
    assert (whole.finish_reason, cut.finish_reason) == ("length", "stop")


def test_a_stream_of_beams_is_refused(decoder: Peer) -> None:
    with pytest.raises(RequestError, match="num_beams is 2, but a stream has one answer, told as it is written"):
        list(decoder.ours.stream(PROMPTS[0], GenerateOptions(num_beams=2)))
