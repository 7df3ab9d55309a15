"""Distillation: torch's and trl's divergences, what top-k leaves out, and chunks that change nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from danlu.core.errors import ConfigError
from danlu.train.losses.distil import (
    DistilConfig,
    TopLogprobs,
    distil_loss,
    divergence,
    hidden_loss,
    soft_rows,
    top_logprobs,
)

from . import trl_peer as trl

M, V, D = 5, 7, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def head() -> nn.Linear:
    linear = nn.Linear(D, V, bias=True).double()
    with torch.no_grad():
        linear.weight.copy_(normal(V, D, seed=5))
    return linear


STUDENT, TEACHER = normal(M, V, seed=1), normal(M, V, seed=2)
TARGETS = torch.tensor([0, 3, 6, 2, 3])


# ---- divergences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_trl(beta: float, temperature: float) -> None:
    student = STUDENT.clone().requires_grad_()
    ours = soft_rows(student, TEACHER, DistilConfig(beta=beta, temperature=temperature)).sum() / temperature**2
    theirs = trl.jsd(student, TEACHER, beta, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)))


def test_forward_and_reverse_kl_are_those_of_torch() -> None:
    student, teacher = STUDENT.log_softmax(-1), TEACHER.log_softmax(-1)
    forward = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    reverse = kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(student, teacher, 0.0), forward)
    torch.testing.assert_close(divergence(student, teacher, 1.0), reverse)


def test_half_way_it_is_symmetric_and_at_most_log_2() -> None:
    student, teacher = STUDENT.log_softmax(-1), TEACHER.log_softmax(-1)
    torch.testing.assert_close(divergence(student, teacher, 0.5), divergence(teacher, student, 0.5))
    apart = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[1e-30, 1.0]]).log()
    assert divergence(*apart, 0.5).item() == pytest.approx(math.log(2))


def test_impossible_tokens_cost_nothing() -> None:
    certain = torch.tensor([[0.0, -math.inf]])
    assert divergence(torch.tensor([[0.5, 0.5]]).log(), certain, 0.0).item() == pytest.approx(math.log(2))
    assert divergence(certain, certain, 0.0).item() == 0.0


def test_gradients_hardly_depend_on_the_temperature() -> None:
    """Hinton et al., section 2.1: with temperature² the slope tends to (logits − logits') / V, both centred."""
    student = STUDENT.clone().requires_grad_()
    loss = soft_rows(student, TEACHER, DistilConfig(temperature=1000.0)).sum()
    centred = (STUDENT - STUDENT.mean(1, True)) - (TEACHER - TEACHER.mean(1, True))
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], centred / V, rtol=1e-2, atol=1e-3)


# ---- the best k of a teacher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_all_tokens_of_the_teacher_are_exact(beta: float) -> None:
    config = DistilConfig(beta=beta, temperature=2.0)
    student = STUDENT.clone().requires_grad_()
    whole = soft_rows(student, TEACHER, config)
    kept = soft_rows(student, top_logprobs(TEACHER, V + 3, 2.0), config)
    torch.testing.assert_close(kept, whole)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), student)[0] for loss in (kept, whole)))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_fewer_tokens_never_give_more_and_more_tokens_come_nearer(beta: float) -> None:
    config = DistilConfig(beta=beta)
    found = [soft_rows(STUDENT, top_logprobs(TEACHER, k), config) for k in range(1, V + 1)]
    for fewer, more in itertools.pairwise(found):
        assert (fewer <= more + 1e-12).all()


def test_the_rest_is_held_to_its_mass() -> None:
    """One kept token: two outcomes, as of a coin."""
    teacher = torch.tensor([[0.6, 0.3, 0.1]]).double().log()
    student = torch.tensor([[0.2, 0.5, 0.3]]).double().log()
    top = top_logprobs(teacher, 1)
    assert top.rest.exp().item() == pytest.approx(0.4)
    expected = 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
    assert soft_rows(student, top, DistilConfig()).item() == pytest.approx(expected)


def test_answers_kept_at_another_temperature_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"temperature is 2\.0, but the teacher's answers were kept at 1\.0\. Use that temperature"
    ):
        soft_rows(STUDENT, top_logprobs(TEACHER, 3), DistilConfig(temperature=2.0))


# ---- the whole loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("kind", ["logits", "top", "head"])
def test_chunks_change_neither_the_loss_nor_its_gradient(head: nn.Linear, kind: str, is_frozen: bool) -> None:
    head.requires_grad_(not is_frozen)
    config = DistilConfig(beta=0.3, temperature=2.0, hard_share=0.25)
    other = nn.Linear(3, V).double().requires_grad_(False)
    teachers: dict[str, Any] = {
        "logits": TEACHER,
        "top": top_logprobs(TEACHER, 3, 2.0),
        "head": (other, normal(M, 3, seed=8)),
    }
    hidden = normal(M, D, seed=7).requires_grad_()
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]

    def found(chunk_rows: int) -> tuple[Tensor, ...]:
        loss, parts = distil_loss(head, hidden, teachers[kind], TARGETS, config, chunk_rows=chunk_rows)
        return loss, *torch.autograd.grad(loss, wanted), *parts.values()

    teacher = other(teachers["head"][1]) if kind == "head" else teachers[kind]
    logits = head(hidden)
    soft = soft_rows(logits, teacher, config).sum()
    hard = nn.functional.cross_entropy(logits, TARGETS, reduction="sum")
    plain = 0.75 * soft + 0.25 * hard
    expected = (plain, *torch.autograd.grad(plain, wanted), soft, hard)
    for chunk_rows in (1, 2, 5, 100):
        for ours, theirs in zip(found(chunk_rows), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_small_steps(head: nn.Linear, beta: float) -> None:
    config = DistilConfig(beta=beta, temperature=1.5, hard_share=0.3)
    hidden = normal(M, D, seed=7).requires_grad_()
    top: TopLogprobs = top_logprobs(TEACHER, 3, 1.5)

    def loss(x: Tensor, *_: Tensor) -> Tensor:
        return distil_loss(head, x, top, TARGETS, config, chunk_rows=2)[0]

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))
    head.requires_grad_(False)
    assert torch.autograd.gradcheck(loss, (hidden,))


def test_any_split_has_the_same_sum(head: nn.Linear) -> None:
    hidden = normal(M, D, seed=7)
    config = DistilConfig(hard_share=0.5)
    whole = distil_loss(head, hidden, TEACHER, TARGETS, config)[0]
    parts = [distil_loss(head, hidden[i], TEACHER[i], TARGETS[i], config)[0] for i in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(parts[0] + parts[1], whole)


# ---- hidden states ---------------------------------------------------------------------------------------------------


def test_hidden_states_of_one_width_are_compared_as_they_are() -> None:
    student, teacher = normal(M, D, seed=1), normal(M, D, seed=2)
    expected = nn.functional.mse_loss(student, teacher) * M
    torch.testing.assert_close(hidden_loss(student, teacher), expected)
    cosine = (1 - nn.functional.cosine_similarity(student, teacher)).sum()
    torch.testing.assert_close(hidden_loss(student, teacher, is_cosine=True), cosine)


@pytest.mark.parametrize("is_cosine", [False, True])
def test_a_projection_brings_the_student_to_the_teachers_width(is_cosine: bool) -> None:
    project, student = nn.Linear(D, 6).double(), normal(M, D, seed=1).requires_grad_()
    teacher = normal(M, 6, seed=2)

    def loss(x: Tensor, *_: Tensor) -> Tensor:
        return hidden_loss(x, teacher, project, is_cosine=is_cosine)

    assert torch.autograd.gradcheck(loss, (student, project.weight, project.bias))
    with pytest.raises(
        ConfigError, match=r"The student's hidden states are 4 wide, the teacher's 6\. Use a projection between them"
    ):
        hidden_loss(student, teacher)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 1.5}, r"beta is 1\.5\. Use 0 to 1"),
        ({"hard_share": -0.1}, r"hard_share is -0\.1\. Use 0 to 1"),
        ({"temperature": 0.0}, r"temperature is 0\.0\. Use a positive number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistilConfig(**changes)
