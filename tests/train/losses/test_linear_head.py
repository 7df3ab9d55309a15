"""The head's loss against torch's own, its gradients against finite differences."""

import pytest
import torch
from torch import nn

from danlu.models.heads.lm import LMHeadConfig
from danlu.models.transform import TransformConfig
from danlu.train.losses.linear_head import head_loss, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


def some(rows: int = 11, width: int = 6, vocabulary: int = 13, dtype: torch.dtype = torch.double) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, width, generator=generator) for n in (rows, vocabulary))
    bias = torch.randn(vocabulary, generator=generator)
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)] + [
        torch.randint(vocabulary, (rows,), generator=generator)
    ]


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_gradients_are_right_for_every_chunk_size(chunk: int, z_weight: float) -> None:
    hidden, weight, bias, targets = some()

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, targets, bias, z_weight=z_weight, chunk_rows=chunk)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_the_sum_is_that_of_torch_with_the_z_loss_on_top() -> None:
    hidden, weight, bias, targets = some()
    logits = hidden @ weight.T + bias
    plain = nn.functional.cross_entropy(logits, targets, reduction="sum")
    z = 0.3 * torch.logsumexp(logits, -1).square().sum()
    total, part = linear_cross_entropy(hidden, weight, targets, bias, z_weight=0.3, chunk_rows=3)
    torch.testing.assert_close((total, part), (plain + z, z))
    assert not part.requires_grad


def test_only_wanted_gradients_are_taken() -> None:
    hidden, weight, bias, targets = some()
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets, bias)[0].backward()
    assert hidden.grad is not None
    with torch.no_grad():
        total, _ = linear_cross_entropy(hidden, weight, targets, bias)
    assert not total.requires_grad


def test_no_rows_are_no_loss() -> None:
    hidden, weight, _, targets = some()
    total, _ = linear_cross_entropy(hidden[:0], weight, targets[:0])
    total.backward()
    assert total == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_the_heads_bf16_gradient_is_added_up_in_fp32() -> None:
    """In bf16 what many chunks add stops counting once the sum is 256 times as large; in fp32 nothing is lost."""
    hidden = torch.ones(4096, 4, dtype=torch.bfloat16)
    weight = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(4096, dtype=torch.long), chunk_rows=4)[0].backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[-2048.0] * 4, [2048.0] * 4]))


def test_bf16_is_as_near_to_fp32_as_the_plain_product() -> None:
    hidden, weight, _, targets = some(600, 32, 300, torch.float32)
    exact = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets)[0], (hidden, weight))
    halves = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    ours = torch.autograd.grad(linear_cross_entropy(halves[0], halves[1], targets)[0], halves)
    logits = nn.functional.linear(*halves).float()
    plain = torch.autograd.grad(nn.functional.cross_entropy(logits, targets, reduction="sum"), halves)
    for found, other, right in zip(ours, plain, exact, strict=True):
        error, allowed = ((t.float() - right).norm() / right.norm() for t in (found, other))
        assert error < 1.1 * allowed


class Body(nn.Module):
    """A network as far as its head is concerned."""

    def __init__(self, config: LMHeadConfig, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.head = config.make(width)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)


@pytest.mark.parametrize(
    "config",
    [
        LMHeadConfig(vocabulary_size=13),
        LMHeadConfig(vocabulary_size=13, bias=True, transform=TransformConfig(activation="gelu")),
        LMHeadConfig(vocabulary_size=13, scale=0.3),
        LMHeadConfig(vocabulary_size=13, softcap=2.0),
    ],
    ids=["plain", "transform", "scale", "softcap"],
)
def test_every_kind_of_head_has_the_loss_of_its_logits(config: LMHeadConfig) -> None:
    body = Body(config)
    hidden, _, _, targets = some(dtype=torch.float32)
    logits = body.logits(hidden)
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = expected + 0.1 * torch.logsumexp(logits, -1).square().sum()
    found, _ = head_loss(body, hidden, targets, z_weight=0.1)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, expected)
    wanted = [hidden, *body.parameters()]
    for ours, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
