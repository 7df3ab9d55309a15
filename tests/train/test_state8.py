import math

import pytest
import torch
from torch import Tensor, nn

from danlu.train import state8
from danlu.train.optim import NamedOptimizer, OptimConfig, make_optimizer
from danlu.train.state8 import adamw8bit_state, adamw8bit_step, can_be_8bit

SETTINGS = {"rate": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999), "epsilon": 1e-8}


def read(state: dict[str, Tensor], name: str) -> Tensor:
    return state8._Moment(state, name).read(slice(None))


def regression(name: str, steps: int) -> tuple[list[float], NamedOptimizer]:
    """Losses of a small network that learns another one, whose inputs differ in size a thousandfold."""
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(256, 64) / 8), nn.Parameter(torch.randn(64, 256) / 16)
    target, sizes = torch.randn(64, 64) / 8, torch.logspace(-2, 1, 64)
    config = OptimConfig(name=name, learning_rate=3e-3, beta2=0.999, weight_decay=0.01)  # pyright: ignore[reportArgumentType]
    optimizer = make_optimizer({"first": first, "second": second}, config)
    losses: list[float] = []
    for _ in range(steps):
        x = torch.randn(64, 64) * sizes
        loss = ((x @ first.T).tanh() @ second.T - (x @ target.T).tanh()).square().mean()
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_8_bits_learn_what_32_learn_in_a_quarter_of_the_memory() -> None:
    exact, _ = regression("adamw", 200)
    packed, optimizer = regression("adamw8bit", 200)
    assert packed == pytest.approx(exact, rel=0.05)
    size = sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state_tensors().values())
    values = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert size / values < 2.1


def test_moments_keep_the_mean_even_where_gradients_have_become_small() -> None:
    """Rounded to nearest, second moments of the quiet columns would stay where they were: 3 to 30 times too large."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(16, 256))
    state = adamw8bit_state(parameter.detach())
    square = torch.zeros(16, 256)
    sizes = torch.randn(16, 256).exp()
    with torch.no_grad():
        for step in range(600):
            quiet = 0.03 if step >= 200 else 1.0
            gradient = torch.randn(16, 256) * sizes
            gradient[:, ::2] *= quiet
            parameter.grad = gradient
            adamw8bit_step([parameter], [state], **{**SETTINGS, "betas": (0.9, 0.99)})  # pyright: ignore[reportArgumentType]
            square.lerp_(gradient.square(), 0.01)
    ratio = (read(state, "exp_avg_sq") / square).log()
    assert abs(float(ratio.mean())) < 0.05
    assert float(ratio.abs().quantile(0.9)) < 0.5


def test_every_code_is_within_a_tenth_of_its_value_and_large_values_are_exact() -> None:
    torch.manual_seed(0)
    values = torch.exp(torch.empty(4, 1000).uniform_(math.log(2e-4), 0.0)) * torch.randn(4, 1000).sign()
    for name, sample in (("exp_avg", values), ("exp_avg_sq", values.square())):
        state = adamw8bit_state(sample)
        moment = state8._Moment(state, name)
        moment.write(slice(None), sample, step=7)
        found = moment.read(slice(None))
        assert float((found / sample - 1).abs().max()) < 0.1
        largest = sample.abs().unflatten(1, (4, 250)).amax(-1)  # 1000 values are four blocks of 250
        torch.testing.assert_close(found.abs().unflatten(1, (4, 250)).amax(-1), largest)
        moment.write(slice(None), torch.zeros_like(sample), step=8)
        assert torch.equal(moment.read(slice(None)), torch.zeros_like(sample))


def test_second_moments_never_become_zero_beside_large_ones() -> None:
    state = adamw8bit_state(torch.zeros(1, 300))
    moment = state8._Moment(state, "exp_avg_sq")
    moment.write(slice(None), torch.tensor([[1.0] * 299 + [1e-30]]), step=1)
    assert float(moment.read(slice(None))[0, -1]) == pytest.approx(1e-8, rel=1e-3)


def test_rows_done_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(7, 5, 60))
        state = adamw8bit_state(parameter.detach())
        with torch.no_grad():
            for _ in range(3):
                parameter.grad = torch.randn_like(parameter)
                adamw8bit_step([parameter], [state], **SETTINGS)  # pyright: ignore[reportArgumentType]
        return [parameter.detach(), *state.values()]

    whole = trained()
    monkeypatch.setattr(state8, "_CHUNK_VALUES", 700)
    assert all(torch.equal(a, b) for a, b in zip(whole, trained(), strict=True))


def test_small_and_narrow_parameters_are_not_worth_8_bits() -> None:
    assert can_be_8bit((64, 64))
    assert not can_be_8bit((63, 64))
    assert not can_be_8bit((4096,))
    assert not can_be_8bit((4096, 16))
