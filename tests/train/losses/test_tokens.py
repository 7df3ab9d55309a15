"""Token scores in chunks: what plain logits give, for frozen and for trained heads, and what memory they take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from danlu.models.heads.lm import LMHeadConfig
from danlu.train.losses.tokens import of_rows, row_means, row_sums, rows_at_a_time, token_scores

M, V, D = 7, 11, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, TARGETS = normal(M, D, seed=1), torch.tensor([3, 0, 10, 3, 5, 1, 2])


def make_head(*, softcap: float | None = None) -> nn.Module:
    head = LMHeadConfig(vocabulary_size=V, bias=True, softcap=softcap, scale=0.7).make(D).double()
    with torch.no_grad():
        for number, parameter in enumerate(head.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=number + 10))
    return head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunks_give_what_all_logits_at_once_give(temperature: float, is_frozen: bool, softcap: float | None) -> None:
    head = make_head(softcap=softcap).requires_grad_(not is_frozen)
    hidden = HIDDEN.clone().requires_grad_()
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    everything = (head(hidden) / temperature).log_softmax(-1)
    expected = everything.gather(1, TARGETS[:, None]).squeeze(1)
    weights = normal(M, seed=5)  # every token has a weight of its own
    slopes = torch.autograd.grad((expected * weights).sum(), wanted)
    for chunk_rows in (1, 3, 7, 50):
        found = token_scores(head, hidden, TARGETS, temperature=temperature, chunk_rows=chunk_rows)
        torch.testing.assert_close(found.logprobs, expected)
        torch.testing.assert_close(found.entropies, torch.distributions.Categorical(logits=everything).entropy())
        assert found.is_first.bool().tolist() == (everything.argmax(-1) == TARGETS).tolist()
        assert not found.entropies.requires_grad
        for ours, theirs in zip(torch.autograd.grad((found.logprobs * weights).sum(), wanted), slopes, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "trained"])
def test_gradients_are_those_of_small_steps(is_frozen: bool) -> None:
    head = make_head().requires_grad_(not is_frozen)

    def logprobs(x: Tensor, *_: Tensor) -> Tensor:
        return token_scores(head, x, TARGETS, chunk_rows=3).logprobs

    assert torch.autograd.gradcheck(logprobs, (HIDDEN.clone().requires_grad_(), *head.parameters()))


def test_a_trained_head_adds_its_gradient_up_in_fp32() -> None:
    """In bf16, adding 400 small shares one after another would lose most of them."""
    head = nn.Linear(8, 50, bias=False).bfloat16()
    hidden, targets = normal(400, 8, seed=1).bfloat16(), torch.zeros(400, dtype=torch.long)
    token_scores(head, hidden, targets, chunk_rows=1).logprobs.sum().backward()
    exact = nn.Linear(8, 50, bias=False)
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    exact(hidden.float()).log_softmax(-1)[:, 0].sum().backward()
    assert head.weight.grad is not None
    assert exact.weight.grad is not None
    error = (head.weight.grad.float() - exact.weight.grad).norm() / exact.weight.grad.norm()
    assert error.item() < 0.01


def test_no_more_than_a_chunk_of_logits_is_alive() -> None:
    head, alive = nn.Linear(D, V).double(), list[int]()
    head.register_forward_hook(lambda _, __, out: alive.append(out.shape[0]))
    found = token_scores(head.requires_grad_(False), HIDDEN.clone().requires_grad_(), TARGETS, chunk_rows=3)
    found.logprobs.sum().backward()
    assert alive == [3, 3, 1], "a frozen head runs once over each row, also with a backward pass"


def test_without_gradients_nothing_is_differentiated() -> None:
    head = make_head()
    with torch.no_grad():
        found = token_scores(head, HIDDEN, TARGETS, chunk_rows=2)
    assert not found.logprobs.requires_grad


def test_no_tokens_have_no_scores() -> None:
    hidden = HIDDEN[:0].clone().requires_grad_()
    found = token_scores(make_head(), hidden, TARGETS[:0])
    assert found.logprobs.shape == found.entropies.shape == (0,)
    found.logprobs.sum().backward()
    assert hidden.grad is not None


def test_values_of_tokens_are_added_up_by_row() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert row_sums(values, [1, 0, 3]).tolist() == [1.0, 0.0, 9.0]
    assert row_means(values, [1, 0, 3]).tolist() == [1.0, 0.0, 3.0]
    assert of_rows(torch.tensor([5.0, 6.0, 7.0]), [1, 0, 2]).tolist() == [5.0, 7.0, 7.0]


def test_large_vocabularies_are_done_fewer_rows_at_a_time() -> None:
    assert rows_at_a_time(nn.Linear(8, 2**16)) == 256
    assert rows_at_a_time(nn.Linear(8, 2**10)) == 2**14
    assert rows_at_a_time(lambda hidden: hidden) == 2**12
