"""SmolLM2-135M-Instruct against transformers, which reads the same GGUF file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.records import GenerateOptions
from danlu.models.loaded import LoadedModel

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]  # so that a busy machine slows it down little

GARMENTS = ("navy lace dress", "loose linen top", "soft wool cardigan", "black denim jacket", "ivory silk skirt")
REVIEWS = [f"I ordered the {garment} in a small and" for garment in GARMENTS]
REVIEWS += [f"Write one sentence of product copy for a {garment} with pockets." for garment in GARMENTS]
REVIEWS += [f"This {garment} runs large, but the fabric is beautiful. 5'4\" 120lbs, wore it" for garment in GARMENTS]
REVIEWS += [
    "Love, love, love!",
    "The colour is not what I saw online: it is more of a 90% grey than a blue. Returning it, since",
    "请写一句关于连衣裙的文案",
    "Three reasons to buy this sweater:\n1.",
    "Q: Is the skirt lined?\nA:",
]


@pytest.fixture(scope="module")
def peer(smollm2_gguf: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()


@torch.no_grad()
def test_logits_equal_transformers(smollm2: LoadedModel, peer: Any) -> None:
    for text in REVIEWS[:10:3] + REVIEWS[-4:]:
        ids = torch.tensor([smollm2.model.chat.tokenizer.encode(text)])
        torch.testing.assert_close(smollm2.logits(ids), peer(ids).logits, atol=1e-3, rtol=0)


def test_greedy_answers_to_twenty_prompts_equal_those_of_transformers(smollm2: LoadedModel, peer: Any) -> None:
    """Read in one pass, transformers must find each token of our answers likeliest: then it would have written them."""
    assert len(REVIEWS) == 20
    tokenizer = smollm2.model.chat.tokenizer
    answers = [list(a.token_ids) for a in smollm2.generate(REVIEWS, GenerateOptions(max_tokens=64))]
    assert all(len(answer) == 64 or answer[-1] in tokenizer.end_ids for answer in answers)
    prompts = [tokenizer.encode(text) for text in REVIEWS]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    for start in range(0, 20, 5):  # a few rows at a time: the logits of all take 1 GB
        with torch.no_grad():  # padding on the right is behind everything that is looked at
            padded = [torch.tensor(row) for row in rows[start : start + 5]]
            likeliest = peer(torch.nn.utils.rnn.pad_sequence(padded, batch_first=True)).logits.argmax(dim=-1).tolist()
        for number, found in enumerate(likeliest, start=start):
            first = len(prompts[number]) - 1
            assert answers[number] == found[first : first + len(answers[number])], REVIEWS[number]


@torch.no_grad()
def test_greedy_answers_equal_those_that_transformers_writes(smollm2: LoadedModel, peer: Any) -> None:
    for text in REVIEWS[7:9]:
        ids = smollm2.model.chat.tokenizer.encode(text)
        theirs = peer.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=2)
        assert (
            list(smollm2.generate([text], GenerateOptions(max_tokens=32))[0].token_ids)
            == theirs[0, len(ids) :].tolist()
        )
