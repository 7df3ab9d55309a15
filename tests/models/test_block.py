"""Where norms and dropout stand in a branch, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.attention import AttentionConfig
from danlu.models.block import Block, Branch, LayerConfig, NormPlace, StackConfig
from danlu.models.norms import NormConfig

pytestmark = pytest.mark.usefixtures("one_thread")
ATTENTION = AttentionConfig(num_heads=1, num_kv_heads=1, head_width=2)
X = torch.tensor([[3.0, 4.0], [-1.0, 1.0]])


class Triple(nn.Module):
    """A layer that anyone can compute."""

    def forward(self, x: Tensor, places: object, attend: object) -> Tensor:
        return 3.0 * x


def stack(*norm_at: NormPlace, **changes: Any) -> StackConfig:
    return StackConfig(
        width=2, layers=(LayerConfig(mixer=ATTENTION),), norm=NormConfig(kind="rms"), context_length=8,
        norm_at=norm_at or ("input",), **changes,
    )  # fmt: skip


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("norm_at", "expected"),
    [
        (("input",), X + 3.0 * norm(X)),
        (("output",), X + norm(3.0 * X)),
        (("sum",), norm(4.0 * X)),
        (("input", "output"), X + norm(3.0 * norm(X))),
        ((), 4.0 * X),
    ],
)
def test_norms_stand_where_the_config_says(norm_at: tuple[NormPlace, ...], expected: Tensor) -> None:
    nowhere: tuple[Any, Any] = (None, None)
    torch.testing.assert_close(Branch(stack(), Triple(), norm_at)(X, *nowhere), expected)


def test_a_layer_may_have_norms_and_dropout_of_its_own() -> None:
    config = stack("sum", dropout=0.2)
    block = Block(config, 0)
    assert (block.mixer.dropout, block.mixer.sum_norm is None) == (0.2, False)
    layer = LayerConfig(mixer=ATTENTION, mixer_norm_at=(), mixer_dropout=0.0)
    block = Block(StackConfig(width=2, layers=(layer,), norm=config.norm, context_length=8, dropout=0.2), 0)
    assert (block.mixer.dropout, block.mixer.input_norm) == (0.0, None)


def test_what_a_branch_adds_is_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    nowhere: tuple[Any, Any] = (None, None)
    branch = Branch(stack(dropout=0.5), Triple(), ())
    assert torch.equal(branch.eval()(X, *nowhere), 4.0 * X)
    found = torch.stack([branch.train()(X, *nowhere) for _ in range(50)])
    assert {float(value) for value in (found / X).unique()} == {1.0, 7.0}  # x + 0, or x + 2 · 3x


def test_a_stack_without_width_is_refused() -> None:
    with pytest.raises(ModelError, match=r"context_length is 0\. It must be positive"):
        StackConfig(width=2, layers=(), norm=NormConfig(), context_length=0)
