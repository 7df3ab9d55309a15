"""The experts layer against transformers' blocks with the same weights."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig, Qwen3NextConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from danlu.core.errors import ModelError
from danlu.models.attend import PackedAttend
from danlu.models.attention import Places
from danlu.models.experts import Experts, ExpertsConfig

WIDTH = 32
NOWHERE = cast(Places, None)
"""Experts do not look at places."""
NO_ROWS = cast(PackedAttend, None)
"""Without a capacity they do not look at rows either."""


def _experts(**numbers: Any) -> Experts:
    layer = ExpertsConfig(**{"num_experts": 8, "top_k": 2, "width": 24, **numbers}).make(WIDTH)
    assert isinstance(layer, Experts)
    return layer


def _randomised(block: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0.0, 0.3)
    return block.eval()


def _put(layer: Experts, **weights: Tensor) -> Experts:
    layer.load_state_dict({name.replace("__", ".") + ".weight": weight for name, weight in weights.items()})
    return layer


def _decoder_pair(kind: str) -> tuple[Experts, Any]:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_experts_per_tok": 2, "num_attention_heads": 4}
    if kind == "mixtral":
        peer = _randomised(MixtralSparseMoeBlock(MixtralConfig(**sizes, intermediate_size=24, num_local_experts=8)))
        layer = _experts(normalise=True)
    elif kind == "olmoe":
        peer = _randomised(OlmoeSparseMoeBlock(OlmoeConfig(**sizes, intermediate_size=24, num_experts=8)))
        layer = _experts()
    elif kind == "qwen3_moe":
        config = Qwen3MoeConfig(**sizes, moe_intermediate_size=24, num_experts=8, norm_topk_prob=True)
        peer, layer = _randomised(Qwen3MoeSparseMoeBlock(config)), _experts(normalise=True)
    else:
        config = Qwen3NextConfig(
            **sizes, moe_intermediate_size=24, num_experts=8, norm_topk_prob=True, shared_expert_intermediate_size=20
        )
        peer = _randomised(Qwen3NextSparseMoeBlock(config))
        layer = _experts(normalise=True, shared_width=20, shared_gate=True)
    weights = {
        "router": peer.gate.weight, "gate_up": peer.experts.gate_up_proj, "down": peer.experts.down_proj
    }  # fmt: skip
    if kind == "qwen3_next":
        shared = peer.shared_expert
        weights |= {
            "shared__gate_up": torch.cat([shared.gate_proj.weight, shared.up_proj.weight]),
            "shared__down": shared.down_proj.weight,
            "shared_gate": peer.shared_expert_gate.weight,
        }
    return _put(layer, **weights), peer


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_outputs_and_gradients_are_those_of_the_reference(kind: str, tokens: int) -> None:
    layer, peer = _decoder_pair(kind)
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    kick = torch.randn(tokens, WIDTH)
    ours, theirs = layer(x, NOWHERE, NO_ROWS), peer(twin.unsqueeze(0))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    (ours * kick).sum().backward()
    (theirs * kick).sum().backward()
    for mine, other in (
        (x.grad, twin.grad),
        (layer.router.weight.grad, peer.gate.weight.grad),
        (layer.gate_up.weight.grad, peer.experts.gate_up_proj.grad),
        (layer.down.weight.grad, peer.experts.down_proj.grad),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def _switch_pair(capacity: int) -> tuple[Experts, Any]:
    config = SwitchTransformersConfig(
        d_model=WIDTH, d_ff=24, num_experts=4, expert_capacity=capacity, router_bias=True, dropout_rate=0.0
    )
    peer = _randomised(SwitchTransformersSparseMLP(config))
    layer = _experts(
        num_experts=4, top_k=1, gated=False, activation="relu", capacity=capacity, router_bias=True, router_fp32=True
    )
    experts = [peer.experts[f"expert_{index}"] for index in range(4)]
    state = {
        "router.weight": peer.router.classifier.weight,
        "router.bias": peer.router.classifier.bias,
        "up.weight": torch.stack([expert.wi.weight for expert in experts]),
        "down.weight": torch.stack([expert.wo.weight for expert in experts]),
    }
    layer.load_state_dict(state)
    return layer, peer


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_what_is_beyond_an_experts_capacity_in_its_row_passes_by(capacity: int) -> None:
    layer, peer = _switch_pair(capacity)
    lengths = [9, 1, 17]
    x = torch.randn(sum(lengths), WIDTH)
    ours = layer(x, NOWHERE, PackedAttend(lengths)).split(lengths)
    for row, mine in zip(x.split(lengths), ours, strict=True):
        torch.testing.assert_close(mine, peer(row.unsqueeze(0))[0], rtol=1e-4, atol=1e-5)
    passed_by = sum(int((mine == 0).all(dim=1).sum()) for mine in ours)
    assert (passed_by > 0) == (capacity < 64)


def test_tokens_that_pass_by_leave_no_gradient() -> None:
    layer, _ = _switch_pair(1)
    x = torch.randn(20, WIDTH, requires_grad=True)
    y = layer(x, NOWHERE, PackedAttend([20]))
    y.sum().backward()
    assert x.grad is not None
    passed_by = (y == 0).all(dim=1)
    assert passed_by.sum() == 16
    assert not x.grad[passed_by].any()


def test_rows_that_share_their_first_tokens_count_them_towards_the_capacity() -> None:
    layer, _ = _switch_pair(2)
    first, rest = torch.randn(6, WIDTH), torch.randn(7, WIDTH)
    shared = layer(torch.cat([first, rest]), NOWHERE, PackedAttend([3, 4], shared=6))
    alone = [layer(torch.cat([first, row]), NOWHERE, PackedAttend([6 + len(row)])) for row in rest.split([3, 4])]
    torch.testing.assert_close(shared, torch.cat([alone[0][:6], alone[0][6:], alone[1][6:]]))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_next"])
def test_a_token_gets_the_same_answer_in_any_company(kind: str) -> None:
    layer, _ = _decoder_pair(kind)
    x = torch.randn(120, WIDTH)
    together = layer(x, NOWHERE, NO_ROWS)
    alone = torch.cat([layer(token, NOWHERE, NO_ROWS) for token in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, layer(x, NOWHERE, NO_ROWS))


def test_the_router_works_in_fp32_when_it_is_told_to() -> None:
    layer = _experts(router_fp32=True).bfloat16()
    assert layer.router(torch.randn(3, WIDTH).bfloat16()).dtype == torch.float32
    assert layer(torch.randn(3, WIDTH).bfloat16(), NOWHERE, NO_ROWS).dtype == torch.bfloat16


def test_jitter_moves_the_choice_in_training_only() -> None:
    torch.manual_seed(0)
    layer = _experts(jitter=0.9)
    x = torch.randn(50, WIDTH)
    assert torch.equal(layer.eval()(x, NOWHERE, NO_ROWS), layer(x, NOWHERE, NO_ROWS))
    assert not torch.equal(layer.train()(x, NOWHERE, NO_ROWS), layer(x, NOWHERE, NO_ROWS))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_experts": 0}, "Model config: num_experts is 0. It must be positive; is config.json whole?"),
        ({"top_k": 9}, "each token goes through 9 of 8 experts. The first must not be larger."),
        ({"capacity": 0}, "Model config: capacity is 0. Use 1 or more, or null for no limit."),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError) as error:
        _experts(**numbers)
    assert message in str(error.value)
