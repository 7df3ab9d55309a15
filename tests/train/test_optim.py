import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, TrainError
from danlu.train.optim import NamedOptimizer, OptimConfig, make_optimizer, rate_at, settle_name

CONFIG = OptimConfig(learning_rate=1.0, warmup_share=0.1, final_share=0.2)
ALGORITHMS = ["adamw", "muon", "sgd", "adamw8bit"]


def made(name: str = "adamw", **settings: object) -> tuple[dict[str, nn.Parameter], NamedOptimizer]:
    """One parameter of every kind under an optimiser that tells them apart."""
    torch.manual_seed(0)
    shapes = {"table": (80, 64), "blocks.0.qkv": (96, 64), "blocks.0.norm": (64,), "head": (80, 64)}
    parameters = {key: nn.Parameter(torch.randn(shape)) for key, shape in shapes.items()}
    config = OptimConfig(name=name, learning_rate=0.01, **settings)  # pyright: ignore[reportArgumentType]
    optimizer = make_optimizer(
        parameters, config, hidden={"blocks.0.qkv"}, embeddings={"table"}, parts={"blocks.0.qkv": (64, 16, 16)}
    )
    return parameters, optimizer


def trained(parameters: dict[str, nn.Parameter], optimizer: NamedOptimizer, steps: range) -> list[Tensor]:
    for step in steps:
        torch.manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.set_rate(rate_at(step, 10, optimizer.config))
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters.values()]


def algorithms(optimizer: NamedOptimizer) -> dict[str, str]:
    return {name: group["algorithm"] for group in optimizer.param_groups for name in group["names"]}


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    rates = [rate_at(step, 100, CONFIG) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    cosine = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)) for step in range(10, 100)]
    assert rates[10:] == pytest.approx(cosine)
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_no_step_has_a_rate_of_zero_however_short_the_run(schedule: str) -> None:
    config = OptimConfig(learning_rate=2e-3, schedule=schedule, final_share=0.0)  # pyright: ignore[reportArgumentType]
    for steps in range(1, 30):
        assert all(0 < rate_at(step, steps, config) <= 2e-3 for step in range(steps))
    assert rate_at(0, 1, CONFIG) == 1.0
    assert all(rate_at(s, 10, OptimConfig(learning_rate=2e-3, warmup_share=1.0)) <= 2e-3 for s in range(12))


def test_steps_of_warm_up_stand_in_for_a_share() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=4, schedule="wsd", decay_share=0.5, final_share=0.0)
    rates = [rate_at(step, 12, config) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, *(1 - math.sqrt(n / 6) for n in range(6))])
    with pytest.raises(ConfigError, match=r"Warm-up takes 4 steps, but the run has 3\."):
        rate_at(0, 3, OptimConfig(learning_rate=2e-3, warmup_steps=4))


def test_the_optimiser_is_adam_with_decoupled_decay() -> None:
    """Three steps of Loshchilov & Hutter's algorithm 2, by hand."""
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5, beta1=0.9, beta2=0.99)
    parameter = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = make_optimizer({"w": parameter}, config)
    value, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.3, -2.0, 0.7), start=1):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        value -= 0.1 * 0.5 * value
        value -= 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.99**step)) + 1e-8)
        assert float(parameter.detach()) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False), (0.0, True)])
def test_sgd_has_momentum_and_decoupled_decay(momentum: float, nesterov: bool) -> None:
    config = OptimConfig(name="sgd", learning_rate=0.1, weight_decay=0.5, momentum=momentum, nesterov=nesterov)
    parameter = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = make_optimizer({"w": parameter}, config)
    value = buffer = 0.0
    value = 1.0
    for gradient in (0.3, -2.0, 0.7):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        buffer = momentum * buffer + gradient
        value = value * (1 - 0.1 * 0.5) - 0.1 * (gradient + momentum * buffer if nesterov else buffer)
        assert float(parameter.detach()) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "qkv", "rest"), [("muon", "muon", "adamw"), ("sgd", "sgd", "sgd"), ("adamw8bit", "adamw8bit", "adamw")]
)
def test_each_parameter_gets_the_algorithm_made_for_it(name: str, qkv: str, rest: str) -> None:
    _, optimizer = made(name)
    head = "adamw8bit" if name == "adamw8bit" else rest
    assert algorithms(optimizer) == {"table": rest, "blocks.0.qkv": qkv, "blocks.0.norm": rest, "head": head}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_norms_and_embeddings_do_not_decay(name: str) -> None:
    parameters, optimizer = made(name, weight_decay=0.5)
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in parameters.items():
        kept = 1.0 if key in ("table", "blocks.0.norm") else 1.0 - 0.01 * 0.5
        torch.testing.assert_close(parameter.detach(), before[key] * kept)


def test_rates_are_factors_that_follow_the_schedule() -> None:
    parameters = {name: nn.Parameter(torch.zeros(2, 2)) for name in ("a", "b")}
    optimizer = make_optimizer(
        parameters, OptimConfig(name="sgd", momentum=0.0, learning_rate=2e-3), rates={"b": 16.0, "frozen": 3.0}
    )
    optimizer.set_rate(0.5)
    for parameter in parameters.values():
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert float(parameters["a"].detach()[0, 0]) == -0.5
    assert float(parameters["b"].detach()[0, 0]) == -8.0


def test_parameters_without_a_gradient_stay() -> None:
    for name in ALGORITHMS:
        parameters, optimizer = made(name, weight_decay=0.5)
        before = [parameter.detach().clone() for parameter in parameters.values()]
        optimizer.step()
        assert all(torch.equal(a, b.detach()) for a, b in zip(before, parameters.values(), strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_resumed_optimiser_goes_on_bit_by_bit(name: str) -> None:
    parameters, optimizer = made(name)
    trained(parameters, optimizer, range(3))
    kept = {key: tensor.clone() for key, tensor in optimizer.state_tensors().items()}
    weights = [parameter.detach().clone() for parameter in parameters.values()]
    expected = trained(parameters, optimizer, range(3, 6))
    parameters, optimizer = made(name)
    for parameter, weight in zip(parameters.values(), weights, strict=True):
        parameter.data.copy_(weight)
    optimizer.load_state_tensors(kept)
    found = trained(parameters, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_state_has_the_names_of_parameters() -> None:
    _, optimizer = made("muon")
    assert {name.rpartition(".")[0] for name in optimizer.state_tensors()} == {
        "table", "blocks.0.qkv", "blocks.0.norm", "head",
    }  # fmt: skip
    assert "blocks.0.qkv.momentum_buffer" in optimizer.state_tensors()
    assert "blocks.0.norm.exp_avg_sq" in optimizer.state_tensors()


def test_the_state_of_another_optimiser_is_refused_and_nothing_changes() -> None:
    parameters, optimizer = made()
    trained(parameters, optimizer, range(1))
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    given = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    given["head.exp_avg"] = torch.zeros(3, 3)
    given["table.exp_avg"] = given["table.exp_avg"].half()
    given["tail.step"] = given.pop("head.step")
    with pytest.raises(
        TrainError,
        match=r"The checkpoint's optimiser state does not fit this run: 1 missing \(head\.step\); 1 unknown "
        r"\(tail\.step\); 1 of another shape \(head\.exp_avg\); 1 of another type \(table\.exp_avg\)\. "
        r"The recipe has changed since; change it back, or remove the work folder",
    ):
        optimizer.load_state_tensors(given)
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state_tensors().items())
    with pytest.raises(TrainError, match=r"4 missing .*; 1 unknown \(blocks\.0\.qkv\.momentum_buffer\)|missing \("):
        made("adamw8bit")[1].load_state_tensors(made("muon")[1].state_tensors())


def test_weights_in_half_precision_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"w: small updates vanish in torch\.bfloat16"):
        make_optimizer({"w": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}, OptimConfig())


def test_muon_without_a_matrix_for_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.name is muon, but no hidden matrix is trained\. Use adamw\."):
        make_optimizer({"w": nn.Parameter(torch.zeros(2, 2))}, OptimConfig(name="muon"), hidden={"frozen"})


def test_auto_takes_muon_where_it_pays_and_says_so() -> None:
    config = OptimConfig(name="auto", learning_rate=0.3)
    settled, why = settle_name(config, 1280, [(64, 256)])
    assert (settled.name, settled.learning_rate) == ("muon", 0.3)
    assert why == "Optimiser: muon; 1280 tokens a step are enough for Muon to pay."
    settled, why = settle_name(config, 1279, [(64, 256)])
    assert (settled.name, why) == ("adamw", "Optimiser: adamw; 1279 tokens a step are too few for Muon to pay.")
    assert settle_name(config, 1280, [])[1] == "Optimiser: adamw, since no hidden matrix trains."
    assert settle_name(CONFIG, 1, [])[0] is CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0\. Use a positive number such as 2e-3"),
        ({"warmup_share": 1.5}, r"warmup_share is 1\.5\. Use 0 to 1"),
        ({"decay_share": -1.0}, r"decay_share is -1\.0\. Use 0 to 1"),
        ({"final_share": -0.1}, r"final_share is -0\.1\. Use 0 to 1"),
        ({"clip_norm": 0.0}, r"clip_norm is 0\.0\. Use a positive number"),
        ({"epsilon": 0.0}, r"epsilon is 0\.0\. Use a positive number such as 1e-8"),
        ({"beta1": 1.0}, r"beta1 is 1\.0\. Use 0 or more, and less than 1"),
        ({"beta2": -0.1}, r"beta2 is -0\.1\. Use 0 or more, and less than 1"),
        ({"momentum": 1.0}, r"momentum is 1\.0\. Use 0 or more, and less than 1"),
        ({"warmup_steps": -1}, r"warmup_steps is -1\. Use 0 or more, or null for warmup_share"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1\. Use 0 or a positive number"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0\. Use a number between 0 and 1 such as 0\.999, or null for none"),
        (
            {"schedule": "wsd", "warmup_share": 0.5, "decay_share": 0.6},
            r"warmup_share 0\.5 and decay_share 0\.6 are more than all steps\. Their sum may be 1 at most",
        ),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**changes)  # pyright: ignore[reportArgumentType]


def test_clipping_and_averaging_can_be_off() -> None:
    assert OptimConfig(clip_norm=None).clip_norm is None
    assert OptimConfig().ema_decay is None


def test_two_processes_with_half_the_rows_each_do_what_one_does() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(Path(__file__).with_name("sharded_optim.py"))]
    processes = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in outputs] == ["equal\n", "equal\n"], "\n".join(error for _, error in outputs)
