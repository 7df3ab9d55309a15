"""The kernels choose what torch's arithmetic chooses, draw for draw."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.core.records import GenerateOptions
from danlu.models import sampling
from danlu.models.native.sample import Draw, Sampler, load_sampler
from danlu.models.sampling import draw, likely, logprob_of, pick_tokens
from danlu.models.writing import Writing
from tests.models.native.cases import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]

FILTERS = [
    {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "min_p": 0.05}, {"temperature": 0.002, "top_p": 0.5},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01}, {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 0.9, "top_k": 1}, {"temperature": 0.9, "top_k": 10**9, "top_p": 0.999},
]  # fmt: skip


def sampler() -> Sampler:
    found = load_sampler()
    assert found is not None
    return found


def drawn(logits: Tensor, options: GenerateOptions, uniforms: list[float]) -> list[int]:
    rules = [
        Draw(row, options.temperature, options.top_k, options.top_p, options.min_p, uniform)
        for row, uniform in enumerate(uniforms)
    ]
    return sampler().choose(logits, rules)


def lies_at_a_border(logits: Tensor, options: GenerateOptions, uniform: float) -> bool:
    """Whether rounding decides which token is drawn, or which ones may be."""
    shares = torch.softmax(likely(logits, options).double(), dim=-1).cumsum(0)
    lower = GenerateOptions(temperature=options.temperature, top_k=options.top_k)
    whole = torch.softmax(likely(logits, lower).double(), dim=-1).sort(descending=True).values.cumsum(0)
    return bool((shares - uniform).abs().min() < 1e-6 or (whole - options.top_p).abs().min() < 1e-6)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_are_those_of_torch(filters: dict[str, float]) -> None:
    generator, numbers = torch.Generator().manual_seed(7), random.Random(7)
    options = GenerateOptions(**filters)  # type: ignore[arg-type]
    num_wrong = 0
    for size, spread in ((3, 1.0), (65, 3.0), (700, 0.2), (2000, 6.0)):
        logits = spread * torch.randn(280, size, generator=generator)
        logits[::7] = logits[::7].round()  # many ties
        logits[3::9, 1 : size // 2] = -torch.inf  # what a grammar forbids
        uniforms = [numbers.random() for _ in range(len(logits))]
        found = drawn(logits, options, uniforms)
        for row, uniform in enumerate(uniforms):
            expected = draw(logits[row], options, uniform)
            num_wrong += found[row] != expected and not lies_at_a_border(logits[row], options, uniform)
    assert num_wrong == 0


def test_the_likeliest_is_the_first_of_equals() -> None:
    logits = torch.randn(40, 777, generator=torch.Generator().manual_seed(0)).round()
    assert sampler().choose(logits, []) == logits.argmax(dim=-1).tolist()
    assert sampler().choose(logits[:, ::2].contiguous(), []) == logits[:, ::2].argmax(dim=-1).tolist()
    wide = torch.zeros(3, 900)
    wide[:, 800] = 9.0
    assert sampler().choose(wide[:, :700], []) == [0, 0, 0], "rows may be parts of longer ones"


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
def test_a_draw_never_gives_what_is_impossible(uniform: float) -> None:
    logits = torch.full((1, 500), -torch.inf)
    logits[0, [17, 499]] = torch.tensor([3.0, -90.0])
    assert drawn(logits, GenerateOptions(temperature=1.0), [uniform]) == [17]
    logits[0, 400] = 3.0
    assert drawn(logits, GenerateOptions(temperature=1.0, top_p=0.9), [uniform]) == [17 if uniform < 0.5 else 400]
    assert drawn(torch.full((1, 9), -torch.inf), GenerateOptions(temperature=1.0), [uniform]) == [0]
    logits[0, 3] = torch.inf
    assert drawn(logits, GenerateOptions(temperature=1.0), [uniform]) == [3]


def test_broken_logits_still_give_a_token() -> None:
    broken = torch.full((2, 70), torch.nan)
    assert all(0 <= token < 70 for token in drawn(broken, GenerateOptions(temperature=1.0, top_p=0.5), [0.5, 0.9]))
    assert all(0 <= token < 70 for token in sampler().choose(broken, []))


@pytest.mark.parametrize("size", [4096, 4099, 5000])
def test_masks_leave_the_same_tokens_as_torch(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(3)
    for words in (1, size // 32, size // 32 + 1, size // 32 + 9):
        allowed = numbers.integers(-(2**31), 2**31, words).astype(np.int32)
        ours = torch.randn(size + 40)
        guard = ours[size:].clone()
        theirs = ours[:size].clone()
        sampling.keep_only(ours[:size], allowed)
        with monkeypatch.context() as patched:
            patched.setattr(sampling, "load_sampler", lambda: None)
            sampling.keep_only(theirs, allowed)
        assert torch.equal(ours[:size], theirs)
        assert torch.equal(ours[size:], guard)
        assert torch.isfinite(theirs).sum() == np.unpackbits(allowed.view(np.uint8), bitorder="little")[:size].sum()


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_log_probabilities_are_those_of_torch(num_top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 4.0 * torch.randn(5000, generator=torch.Generator().manual_seed(1))
    logits[100:200] = -torch.inf
    ours = logprob_of(logits, 44, num_top)
    monkeypatch.setattr(sampling, "_FEWEST_TOKENS", 10**9)
    theirs = logprob_of(logits, 44, num_top)
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-5)
    assert len(sampler().note(logits[:7], 20)[1]) == 7


def test_a_large_vocabulary_gives_the_same_tokens_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 2.0 * torch.randn(6, 8000, generator=torch.Generator().manual_seed(2))
    asked = [
        GenerateOptions(), GenerateOptions(temperature=0.7, seed=1), GenerateOptions(logprobs=2),
        GenerateOptions(temperature=1.0, top_p=0.8, seed=2, repetition_penalty=1.2),
        GenerateOptions(logit_bias={5: 50.0}), GenerateOptions(temperature=1.0, top_k=30, seed=4, logprobs=0),
    ]  # fmt: skip
    before = logits.clone()

    def tokens() -> list[int]:
        return pick_tokens(logits, [Writing([5, 6], options, None, 10) for options in asked])

    ours = tokens()
    monkeypatch.setattr(sampling, "_FEWEST_TOKENS", 10**9)
    assert ours == tokens()
    assert ours[4] == 5
    assert torch.equal(logits, before)
