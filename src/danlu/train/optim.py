"""Optimisers by parameter name, their config and their rate.

One object moves all parameters: which algorithm each one gets, and whether it decays, is decided here once. The
algorithms are in fused.py, muon.py and state8.py and know no names; this file knows no network and no loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError
from danlu.train.fused import adamw_state, adamw_step, sgd_state, sgd_step
from danlu.train.muon import muon_pays, muon_state, muon_step
from danlu.train.named_state import copy_named
from danlu.train.schedule import Decay, Schedule, Shape
from danlu.train.state8 import adamw8bit_state, adamw8bit_step, can_be_8bit

Algorithm = Literal["adamw", "muon", "sgd", "adamw8bit"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimiser, its learning rate over the steps, and what is done to gradients first."""

    name: Literal["adamw", "muon", "sgd", "adamw8bit", "auto"] = "adamw"
    """adamw; muon: it for hidden matrices, AdamW for the rest; sgd; adamw8bit: AdamW with 8-bit moments in matrices;
    auto: muon where the tokens of a step make it pay, else adamw."""
    learning_rate: float | None = None
    """Peak rate; null for what is usual for the task and for what trains: adapters learn faster. Muon takes AdamW's."""
    schedule: Shape = "cosine"
    """How the rate falls after warm-up; wsd stays at the peak and falls over the last steps."""
    warmup_share: float = 0.06
    """Share of the steps over which the rate rises from 0."""
    warmup_steps: int | None = None
    """Steps of warm-up, instead of a share."""
    decay_share: float = 0.2
    """wsd: share of the steps over which the rate falls."""
    decay: Decay = "1-sqrt"
    """wsd: how the rate falls."""
    final_share: float = 0.1
    """The rate ends at this share of its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, of matrices only: no biases, norms or embeddings."""
    beta1: float = 0.9
    """AdamW: decay of the mean of gradients."""
    beta2: float = 0.99
    """AdamW: decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """AdamW: added to the root of squared gradients."""
    momentum: float = 0.95
    """Muon and SGD: decay of the momentum."""
    nesterov: bool = True
    """Muon and SGD: whether the momentum looks one step ahead."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null for never."""
    ema_decay: float | None = None
    """Decay of an average of the weights, which then is what is validated and kept; null for none."""

    def __post_init__(self) -> None:
        for name, example in (("learning_rate", "2e-3"), ("clip_norm", "1.0"), ("epsilon", "1e-8")):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}.", f"Use a positive number such as {example}.")
        for name in ("warmup_share", "decay_share", "final_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 to 1.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 or more, and less than 1.")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}.", "Use 0 or more, or null for warmup_share.")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}.", "Use 0 or a positive number such as 0.1.")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(
                f"ema_decay is {self.ema_decay}.", "Use a number between 0 and 1 such as 0.999, or null for none."
            )
        if self.schedule == "wsd" and self.warmup_steps is None and self.warmup_share + self.decay_share > 1.0:
            raise ConfigError(
                f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more than all steps.",
                "Their sum may be 1 at most.",
            )

    @property
    def peak_rate(self) -> float:
        """The rate, when it is settled (train/settings)."""
        assert self.learning_rate is not None, "settle comes first"
        return self.learning_rate


def schedule_of(config: OptimConfig, steps: int) -> Schedule:
    """The schedule of a run of ``steps``; ConfigError when warm-up and decay do not fit into it."""
    decay = round(steps * config.decay_share) if config.schedule == "wsd" else 0
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(round(steps * config.warmup_share), steps - decay)
    return Schedule(
        shape=config.schedule,
        num_steps=steps,
        num_warmup=warmup,
        num_decay=decay,
        decay=config.decay,
        final_share=config.final_share,
    )


def rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step ``step`` (0-based), a pure function of it; see ``Schedule`` for the formulas."""
    return config.peak_rate * schedule_of(config, steps).share(step)


def settle_name(
    config: OptimConfig, tokens_per_step: int, hidden_shapes: Sequence[Sequence[int]]
) -> tuple[OptimConfig, str]:
    """The config with ``auto`` made a name, and a sentence that says which and why; others come back as they are.

    ``hidden_shapes`` are those of the matrices that Muon would take, one for each projection.
    """
    if config.name != "auto":
        return config, f"Optimiser: {config.name}."
    if not hidden_shapes:
        return dataclasses.replace(config, name="adamw"), "Optimiser: adamw, since no hidden matrix trains."
    pays = muon_pays(tokens_per_step, hidden_shapes)
    name, why = ("muon", "enough") if pays else ("adamw", "too few")
    return (
        dataclasses.replace(config, name=name),
        f"Optimiser: {name}; {tokens_per_step} tokens a step are {why} for Muon to pay.",
    )


class NamedOptimizer(torch.optim.Optimizer):
    """Moves parameters, each group by its own algorithm; what it remembers can be read and written by name.

    State is made at once, so that ``state_tensors`` always names the same tensors. Under FSDP2 make it after sharding.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], config: OptimConfig) -> None:
        """Use ``make_optimizer``. A group: params, names, algorithm, rate_share, weight_decay, parts."""
        super().__init__(groups, {"lr": config.peak_rate})  # pyright: ignore[reportArgumentType]
        self.config = config
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._new_state(group["algorithm"], parameter)
        self.set_rate(config.peak_rate)

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step; groups with a share of their own get that share of it."""
        for group in self.param_groups:
            group["lr"] = rate * group["rate_share"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            moving = [index for index, parameter in enumerate(group["params"]) if parameter.grad is not None]
            if moving:
                self._move(group, moving)

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as ``<parameter>.<kind>``, not copied (DTensors where parameters are)."""
        return {
            f"{name}.{kind}": tensor
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            for kind, tensor in self.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_tensors``; TrainError, with nothing changed, when it is of another optimiser."""
        copy_named(self.state_tensors(), tensors, "optimiser state")

    def _new_state(self, algorithm: Algorithm, parameter: nn.Parameter) -> dict[str, Tensor]:
        if algorithm == "muon":
            return muon_state(parameter.detach())
        if algorithm == "sgd":
            return sgd_state(parameter.detach(), self.config.momentum)
        return (adamw8bit_state if algorithm == "adamw8bit" else adamw_state)(parameter.detach())

    def _move(self, group: dict[str, Any], moving: Sequence[int]) -> None:
        """One step for those parameters of a group."""
        config = self.config
        parameters: list[nn.Parameter] = [group["params"][index] for index in moving]
        states = [self.state[parameter] for parameter in parameters]
        pace = {"rate": group["lr"], "weight_decay": group["weight_decay"]}
        algorithm: Algorithm = group["algorithm"]
        if algorithm == "muon":
            parts = [group["parts"][index] for index in moving]
            muon_step(parameters, states, parts, momentum=config.momentum, nesterov=config.nesterov, **pace)
        elif algorithm == "sgd":
            sgd_step(parameters, states, momentum=config.momentum, nesterov=config.nesterov, **pace)
        else:
            adam_step = adamw8bit_step if algorithm == "adamw8bit" else adamw_step
            adam_step(parameters, states, betas=(config.beta1, config.beta2), epsilon=config.epsilon, **pace)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: OptimConfig,
    *,
    parts: Mapping[str, tuple[int, ...]] | None = None,
    hidden: Collection[str] = (),
    embeddings: Collection[str] = (),
    rates: Mapping[str, float] | None = None,
) -> NamedOptimizer:
    """An optimiser for fp32 parameters by name. Names that are not among ``parameters`` (frozen ones) are passed over.

    ``hidden`` are the matrices that Muon may take, ``parts`` the rows of each projection in those that hold several
    (queries, keys, values: made orthogonal each on its own), ``rates`` factors of the rate (LoRA+: 16 for B).

    Not decayed are parameters of less than two dimensions (a norm's scale should not be drawn to 0, a bias has nothing
    to overfit) and ``embeddings``: a rare token's row has no gradient in most steps, so decay would shrink it by how
    rare it is, and small embeddings make large gradients in early layers (OLMo 2, 2024). ``embeddings`` also keep fp32
    moments in adamw8bit: their rows differ in size by orders of magnitude (Dettmers et al. 2021).
    """
    assert config.name != "auto", "settle_name comes first"
    if config.name == "muon" and not any(name in parameters for name in hidden):
        raise ConfigError("optim.name is muon, but no hidden matrix is trained.", "Use adamw.")
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        assert parameter.dtype in (torch.float32, torch.float64), f"{name}: small updates vanish in {parameter.dtype}"
        algorithm = _algorithm(config.name, parameter, is_hidden=name in hidden, is_table=name in embeddings)
        decays = parameter.ndim >= 2 and name not in embeddings
        settings = {
            "algorithm": algorithm,
            "rate_share": (rates or {}).get(name, 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        group = groups.setdefault(tuple(settings.values()), {**settings, "params": [], "names": [], "parts": []})
        group["params"].append(parameter)
        group["names"].append(name)
        group["parts"].append((parts or {}).get(name, tuple(parameter.shape[-2:-1])))
    return NamedOptimizer(list(groups.values()), config)


def _algorithm(name: Algorithm, parameter: nn.Parameter, *, is_hidden: bool, is_table: bool) -> Algorithm:
    """What moves a parameter: AdamW where the algorithm chosen is not made for it."""
    if name == "muon":
        return name if is_hidden else "adamw"
    if name == "adamw8bit":
        return name if can_be_8bit(parameter.shape) and not is_table else "adamw"
    return name
