from pathlib import Path

import pytest
import torch

from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["The navy lace dress", "I love it! " * 5]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LoadedModel:
    return LoadedModel(load_model(tiny_folder, precision="fp32"))


def by_definition(tiny: LoadedModel, prompt: str, count: int, top_k: int, alpha: float) -> list[int]:
    """Equation 5 of Su et al. 2022, everything read anew for each candidate."""
    ids = tiny.model.chat.tokenizer.encode(prompt)
    written: list[int] = []
    while len(written) < count and not (written and written[-1] in tiny.model.chat.tokenizer.end_ids):
        now = torch.tensor([ids + written])
        chances = torch.softmax(tiny.logits(now)[0, -1], dim=-1)
        scored: list[tuple[float, int]] = []
        for token in torch.topk(chances, top_k).indices.tolist():
            hidden = tiny.hidden(torch.cat([now, torch.tensor([[token]])], dim=1))[0]
            likeness = max(float(torch.cosine_similarity(hidden[-1], one, dim=0)) for one in hidden[:-1])
            scored.append(((1 - alpha) * float(chances[token]) - alpha * likeness, token))
        written.append(max(scored)[1])
    return written


@pytest.mark.parametrize(("top_k", "alpha"), [(4, 0.6), (2, 0.2), (7, 1.0)])
def test_it_writes_what_the_definition_says(tiny: LoadedModel, top_k: int, alpha: float) -> None:
    options = GenerateOptions(max_tokens=12, top_k=top_k, penalty_alpha=alpha)
    answers = tiny.generate(PROMPTS, options)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.token_ids) == by_definition(tiny, prompt, 12, top_k, alpha)


def test_it_does_not_write_what_greedy_writes(tiny: LoadedModel) -> None:
    greedy = tiny.generate(PROMPTS, GenerateOptions(max_tokens=20))
    assert tiny.generate(PROMPTS, GenerateOptions(max_tokens=20, top_k=4, penalty_alpha=0.9)) != greedy


def test_it_streams_and_tells_log_probabilities(tiny: LoadedModel) -> None:
    options = GenerateOptions(max_tokens=8, top_k=4, penalty_alpha=0.6, logprobs=1)
    (answer,) = tiny.generate(PROMPTS[:1], options)
    deltas = list(tiny.stream(PROMPTS[0], options))
    assert "".join(delta.text for delta in deltas) == answer.text
    assert tuple(item for delta in deltas for item in delta.logprobs) == answer.logprobs
    assert [item.token_id for item in answer.logprobs] == list(answer.token_ids)
