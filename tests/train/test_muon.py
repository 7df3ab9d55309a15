import math

import pytest
import torch
from torch import Tensor, nn

from danlu.train import muon
from danlu.train.muon import muon_pays, orthogonalize
from danlu.train.optim import NamedOptimizer, OptimConfig, make_optimizer

CONFIG = OptimConfig(name="muon", learning_rate=0.02, weight_decay=0.1, momentum=0.95)


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without fast bf16."""
    monkeypatch.setattr(muon, "compute_dtype", lambda device: torch.float32)


def plain_update(matrix: Tensor) -> Tensor:
    """The published iteration, one matrix at a time and as it is written, times 0.2 √max(rows, columns)."""
    x = matrix / matrix.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x * 0.2 * math.sqrt(max(matrix.shape))


def made(shapes: dict[str, tuple[int, ...]], config: OptimConfig = CONFIG) -> dict[str, nn.Parameter]:
    torch.manual_seed(3)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def stepped(parameters: dict[str, nn.Parameter], optimizer: NamedOptimizer, count: int) -> None:
    torch.manual_seed(9)
    for _ in range(count):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_published_formula(nesterov: bool) -> None:
    config = OptimConfig(name="muon", learning_rate=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov)
    parameters = made({"tall": (24, 16), "wide": (16, 24), "square": (16, 16)})
    expected = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    stepped(parameters, make_optimizer(parameters, config, hidden=parameters), 4)
    torch.manual_seed(9)
    momenta = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for _ in range(4):
        for name, weight in expected.items():
            gradient = torch.randn_like(weight)
            momenta[name] = 0.9 * momenta[name] + gradient
            update = plain_update(gradient + 0.9 * momenta[name] if nesterov else momenta[name])
            expected[name] = weight - 0.02 * 0.1 * weight - 0.02 * update
    for name, weight in expected.items():
        torch.testing.assert_close(parameters[name].detach(), weight, rtol=1e-4, atol=1e-5)


def test_muon_is_torchs_step_for_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "compute_dtype", lambda device: torch.bfloat16)
    parameters = made({"tall": (96, 64), "wide": (64, 96), "square": (64, 64)})
    theirs = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    optimizer = torch.optim.Muon(
        theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    stepped(parameters, make_optimizer(parameters, CONFIG, hidden=parameters), 10)
    torch.manual_seed(9)
    for _ in range(10):
        for parameter in theirs.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), theirs[name].detach(), rtol=0, atol=1e-5)


def test_an_update_turns_every_direction_about_equally() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 20) * torch.logspace(-2, 0, 8).unsqueeze(-1)  # directions a hundred times apart
    sizes = torch.linalg.svdvals(orthogonalize(matrices))
    assert sizes.min() > 0.5
    assert sizes.max() < 1.3
    assert torch.equal(orthogonalize(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_an_update_has_the_size_of_adams() -> None:
    parameters = made({"w": (64, 256)})
    before = parameters["w"].detach().clone()
    config = OptimConfig(name="muon", learning_rate=0.02)
    stepped(parameters, make_optimizer(parameters, config, hidden=["w"]), 1)
    size = float((parameters["w"] - before).detach().square().mean().sqrt()) / 0.02
    assert size == pytest.approx(0.2, rel=0.2)


@pytest.mark.usefixtures("in_fp32")
def test_queries_keys_and_values_of_one_matrix_are_orthogonalised_each_on_its_own() -> None:
    rows = (16, 4, 4)
    fused = made({"qkv": (24, 16)})
    apart = {str(i): nn.Parameter(part.clone()) for i, part in enumerate(fused["qkv"].detach().split(rows))}
    torch.manual_seed(1)
    gradient = torch.randn(24, 16)
    gradient[:16] *= 1000.0  # queries would drown the others
    fused["qkv"].grad = gradient
    for parameter, part in zip(apart.values(), gradient.split(rows), strict=True):
        parameter.grad = part
    make_optimizer(fused, CONFIG, hidden=["qkv"], parts={"qkv": rows}).step()
    make_optimizer(apart, CONFIG, hidden=apart).step()
    torch.testing.assert_close(fused["qkv"].detach(), torch.cat([p.detach() for p in apart.values()]))


@pytest.mark.usefixtures("in_fp32")
def test_experts_are_matrices_of_their_own() -> None:
    together = made({"experts": (3, 10, 6)})
    apart = {str(g): nn.Parameter(together["experts"].detach()[g].clone()) for g in range(3)}
    torch.manual_seed(1)
    together["experts"].grad = torch.randn(3, 10, 6)
    for g, parameter in enumerate(apart.values()):
        parameter.grad = together["experts"].grad[g].clone()
    make_optimizer(together, CONFIG, hidden=["experts"], parts={"experts": (5, 5)}).step()
    make_optimizer(apart, CONFIG, hidden=apart, parts=dict.fromkeys(apart, (5, 5))).step()
    torch.testing.assert_close(together["experts"].detach(), torch.stack([p.detach() for p in apart.values()]))


@pytest.mark.usefixtures("in_fp32")
def test_many_matrices_are_multiplied_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (made({str(i): (6, 4) if i % 2 else (4, 6) for i in range(5)}) for _ in range(2))
    stepped(whole, make_optimizer(whole, CONFIG, hidden=whole), 2)
    monkeypatch.setattr(muon, "_MOST_VALUES", 48)
    stepped(cut, make_optimizer(cut, CONFIG, hidden=cut), 2)
    for name, parameter in whole.items():
        torch.testing.assert_close(cut[name].detach(), parameter.detach())


def test_parts_that_are_not_all_rows_are_our_mistake() -> None:
    parameters = made({"qkv": (6, 4)})
    with pytest.raises(AssertionError, match=r"parts \(2, 2\) are not the rows of \(6, 4\)"):
        stepped(parameters, make_optimizer(parameters, CONFIG, hidden=["qkv"], parts={"qkv": (2, 2)}), 1)


def test_muon_pays_from_twenty_tokens_for_each_of_the_smaller_side() -> None:
    assert muon_pays(20 * 64, [(64, 256)])
    assert not muon_pays(20 * 64 - 1, [(64, 256)])
    assert not muon_pays(20 * 64, [(64, 256), (128, 128)])
    assert muon_pays(20 * 96, [(64, 256), (128, 128)])  # as many values each: 64 and 128 make 96
    assert not muon_pays(10**9, [])
