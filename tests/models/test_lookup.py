from pathlib import Path

import pytest
import torch
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models import lookup
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.lookup import guess
from tests.models.cases import recurrent

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["I love it! " * 12 + "The soft black cotton top", "The navy lace dress", "a"]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LoadedModel:
    return LoadedModel(load_model(tiny_folder, precision="fp32"))


@pytest.mark.parametrize("count", [1, 4, 10])
def test_guessing_changes_no_answer(tiny: LoadedModel, count: int) -> None:
    plain = tiny.generate(PROMPTS, GenerateOptions(max_tokens=40))
    assert tiny.generate(PROMPTS, GenerateOptions(max_tokens=40, lookup_tokens=count)) == plain


def test_penalties_and_log_probabilities_stay_the_same(tiny: LoadedModel) -> None:
    options = {"max_tokens": 30, "repetition_penalty": 1.2, "min_tokens": 9, "logprobs": 2, "stop": ("zz",)}
    plain = tiny.generate(PROMPTS, GenerateOptions(**options))  # type: ignore[arg-type]
    guessed = tiny.generate(PROMPTS, GenerateOptions(**options, lookup_tokens=5))  # type: ignore[arg-type]
    for one, other in zip(plain, guessed, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        before, after = ([item.logprob for item in answer.logprobs] for answer in (one, other))
        assert after == pytest.approx(before, abs=1e-4)


def test_guesses_that_hold_save_passes(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the answer in advance, a pass takes four guesses and its own token."""
    prompt = tiny.model.chat.tokenizer.encode("The navy lace dress")
    (answer,) = tiny.generate([prompt], GenerateOptions(max_tokens=31, ignore_eos=True))
    known, passes = [*prompt, *answer.token_ids], []

    def told(ids: list[int], most: int) -> list[int]:
        passes.append(most)
        return known[len(ids) : len(ids) + most]

    monkeypatch.setattr(lookup, "guess", told)
    (guessed,) = tiny.generate([prompt], GenerateOptions(max_tokens=31, ignore_eos=True, lookup_tokens=4))
    assert guessed == answer
    assert passes == [4] * 6, "1 token from the prompt, then 30 in sixes of 5"


def test_the_last_and_longest_match_is_guessed() -> None:
    assert guess([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 3) == [4, 8, 1]
    assert guess([7, 1, 2, 3, 1, 2, 9, 7, 1, 2], 2) == [3, 1]
    assert guess([1, 2, 3], 5) == []
    assert guess([4], 5) == []
    assert guess([4, 4], 5) == [4]


def test_an_answer_may_end_inside_a_guess_and_at_the_context(tiny: LoadedModel) -> None:
    context = tiny.model.config.context_length
    ids = [10, 11, 12] * (context // 3)
    options = {"max_tokens": 50, "ignore_eos": True}
    prompt = ids[: context - 4]
    (plain,) = tiny.generate([prompt], GenerateOptions(**options))
    (guessed,) = tiny.generate([prompt], GenerateOptions(**options, lookup_tokens=10))
    assert plain.token_ids == guessed.token_ids
    assert len(plain.token_ids) == 4


def test_stacks_that_cannot_take_tokens_back_are_refused(tmp_path: Path) -> None:
    case = recurrent.CASES["qwen3-next"]
    torch.manual_seed(0)
    assert (case.config, case.peer) == (Qwen3NextConfig, Qwen3NextForCausalLM)
    case.make().save_pretrained(tmp_path)
    model = LoadedModel(load_model(tmp_path, precision="fp32"))
    with pytest.raises(RequestError, match="recurrent layers, which cannot take tokens back") as error:
        model.generate([[5, 6]], GenerateOptions(lookup_tokens=2))
    assert error.value.param == "lookup_tokens"
