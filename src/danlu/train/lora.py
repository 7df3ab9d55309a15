"""LoRA (Hu et al. 2021) on the core's linears: frozen base, two thin matrices a projection; PEFT's file layout.

Our linears may hold several projections of a checkpoint (queries, keys and values are one). Their A matrices are
stacked and their B matrices stand on a diagonal, so one fused linear costs two extra thin products, not six, and the
adapter still loads in ``peft`` projection by projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ModelError
from danlu.core.files import read_json, write_json
from danlu.models.grouped import GroupedLinear
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.linear import rows_of_parts
from danlu.models.model import Model, set_layer
from danlu.models.tensors import save_tensors
from danlu.train.grouped_lora import LoraGroupedLinear

ALL = "all"
"""The target that stands for every linear of every block."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linears get an adapter, and how large."""

    rank: int = 4
    """Columns of A and B: the adapter's size."""
    alpha: float = 8.0
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = (ALL,)
    """Linears that get one: all, names of ours (qkv, gate_up, …), or how names of the checkpoint end (q_proj, …)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}.", "Use 1 or more.")
        if self.alpha <= 0:
            raise ConfigError(f"alpha is {self.alpha}.", "Use a positive number such as 8.0.")
        if not self.targets:
            raise ConfigError("targets is empty.", "Name at least one linear, or 'all'.")


class LoraLinear(nn.Module):
    """y = x Wᵀ + (alpha / rank) (x Aᵀ) Bᵀ, W frozen. A starts random, B at zero, so y starts as the base's.

    ``rows`` are the rows of each projection in the base, ``chosen`` says which of them have an adapter.
    """

    def __init__(self, base: nn.Linear, rows: Sequence[int], chosen: Sequence[bool], config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.rank = config.rank
        self.scaling = config.alpha / config.rank
        self.chosen = tuple(chosen)
        self._rows = tuple(rows)
        self.a = nn.Parameter(torch.empty(sum(chosen) * config.rank, base.in_features))
        kept = [r for r, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(r, config.rank)) for r in kept)
        bound = 1.0 / math.sqrt(base.in_features)  # kaiming_uniform with a = √5, as peft initialises
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, O); adapters are kept in fp32 and cast to the type of ``x`` for the product."""
        low = nn.functional.linear(x, self.a.to(x.dtype))  # (N, parts·r)
        return torch.addmm(self.base(x), low, (self._up() * self.scaling).to(x.dtype).t())

    def delta(self) -> Tensor:
        """The change of W this adapter makes, fp32 (O, D)."""
        return (self._up().float() @ self.a.float()) * self.scaling

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A (r, D) and B (rows, r) of each projection that has an adapter."""
        return list(zip(self.a.split(self.rank), self.b, strict=True))

    def _up(self) -> Tensor:
        """All B matrices on a diagonal, no columns for projections without one: (O, parts·r)."""
        if len(self.chosen) == 1:
            return self.b[0]
        waiting = iter(self.b)
        parts = zip(self._rows, self.chosen, strict=True)
        return torch.block_diag(*(next(waiting) if c else self.a.new_empty(r, 0) for r, c in parts))


def add_lora(model: Model, config: LoraConfig) -> list[nn.Parameter]:
    """Wrap the target linears of a model in place; returns the trainable parameters (everything else is frozen)."""
    model.network.requires_grad_(False)
    trainable: list[nn.Parameter] = []
    found = block_linears(model)
    unmatched = set(config.targets) - {ALL}
    for name, (linear, theirs) in found.items():
        ours = name.rpartition(".")[2]
        chosen = [any(_means(target, ours, their) for target in config.targets) for their in theirs]
        unmatched -= {target for target in unmatched if any(_means(target, ours, their) for their in theirs)}
        if any(chosen):
            if isinstance(linear, GroupedLinear):
                wrapped = LoraGroupedLinear(linear, chosen[: len(linear.parts)], config)
            else:
                rows = rows_of_parts(linear) if len(theirs) > 1 else (linear.out_features,)
                wrapped = LoraLinear(linear, rows, chosen, config)
            set_layer(model.network, name, wrapped)
            trainable += [wrapped.a, *wrapped.b]
    if not found:
        raise ModelError(
            "No linear of this model takes an adapter.", "Fine-tune plain weights, not a quantised or packed model."
        )
    if unmatched:
        linears = [*found, *(their for _, theirs in found.values() for their in theirs)]
        known = sorted({ALL, *(name.rpartition(".")[2] for name in linears)})
        raise ConfigError(f"targets has {min(unmatched)!r}.", f"Known: {', '.join(known)}.")
    return trainable


def _means(target: str, ours: str, theirs: str) -> bool:
    """Whether a target means the linear that we and the checkpoint call so: the end of its name is enough."""
    return target in (ALL, ours) or f".{theirs}".endswith(f".{target}")


def block_linears(model: Model) -> dict[str, tuple[nn.Linear | GroupedLinear, tuple[str, ...]]]:
    """Every plain linear of every block: our name → the layer and what the checkpoint calls its projections."""
    weights = model.architecture.weights(model.config)
    return {
        name: (module, tuple(n.removesuffix(".weight") for n in weights[f"{name}.weight"].names))
        for name, module in model.network.named_modules()
        if ".blocks." in f".{name}" and isinstance(module, (nn.Linear, GroupedLinear))
    }


def lora_layers(model: Model) -> dict[str, LoraLinear | LoraGroupedLinear]:
    """All adapters by the name of the linear they wrap."""
    return {n: m for n, m in model.network.named_modules() if isinstance(m, (LoraLinear, LoraGroupedLinear))}


def merge_lora(model: Model) -> float:
    """Add every adapter to its base in fp32 and unwrap it; returns the largest change of a weight."""
    largest = 0.0
    for name, layer in lora_layers(model).items():
        delta = layer.delta()
        largest = max(largest, float(delta.detach().abs().max()))
        base = layer.base
        base.weight = nn.Parameter((base.weight.float() + delta).to(base.weight.dtype), requires_grad=False)
        set_layer(model.network, name, base)
    return largest


def _bare_prefix(model: Model) -> str:
    """What names of this family begin with and this model's lack, since it has no head."""
    return model.architecture.prefix if isinstance(model.config.head, (type(None), EmbedConfig)) else ""


def _stems(model: Model) -> dict[str, list[str]]:
    """For each adapter, PEFT's names of its projections: as in the checkpoint, which lacks a prefix without a head."""
    names = model.architecture.weights(model.config)
    prefix = _bare_prefix(model)
    return {
        ours: [
            f"base_model.model.{theirs.removesuffix('.weight').removeprefix(prefix)}"
            for theirs, chosen in zip(names[f"{ours}.weight"].names, layer.chosen, strict=True)
            if chosen
        ]
        for ours, layer in lora_layers(model).items()
    }


def lora_state(model: Model) -> dict[str, Tensor]:
    """Adapter tensors under PEFT's names, one pair a projection of the original checkpoint."""
    stems, state = _stems(model), dict[str, Tensor]()
    for ours, layer in lora_layers(model).items():
        for stem, (a, b) in zip(stems[ours], layer.pairs(), strict=True):
            state[f"{stem}.lora_A.weight"] = a.detach().clone()
            state[f"{stem}.lora_B.weight"] = b.detach().clone()
    return state


def load_lora_state(model: Model, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``lora_state``; raises ModelError when a tensor is missing, unknown or misshapen."""
    expected = lora_state(model)
    wrong = {
        "missing": sorted(expected.keys() - state.keys()),
        "not of this model": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape),
    }
    if any(wrong.values()):
        found = "; ".join(
            f"{len(n)} {what} ({', '.join(n[:3])}{', …' * (len(n) > 3)})" for what, n in wrong.items() if n
        )
        raise ModelError(f"The adapter does not fit this model: {found}.", "Was it trained on another base?")
    stems = _stems(model)
    with torch.no_grad():
        for ours, layer in lora_layers(model).items():
            for stem, (a, b) in zip(stems[ours], layer.pairs(), strict=True):
                a.copy_(state[f"{stem}.lora_A.weight"])
                b.copy_(state[f"{stem}.lora_B.weight"])


def save_adapter(model: Model, folder: Path, config: LoraConfig, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT and vLLM read them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = lora_state(model)
    save_tensors(state, folder / "adapter_model.safetensors")
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": _task_type(model),
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": _is_transposed(model),
            "inference_mode": True,
            "target_modules": _target_modules(model, {name.split(".lora_")[0] for name in state}),
        },
    )


def _target_modules(model: Model, adapted: Set[str]) -> list[str]:
    """The shortest ends of names that mean the adapted projections and nothing else of the checkpoint."""
    prefix = _bare_prefix(model)
    names = [name for source in model.architecture.weights(model.config).values() for name in source.names]
    stems = {name.removesuffix(".weight").removeprefix(prefix) for name in (*names, *model.unused)}
    wanted = {name.removeprefix("base_model.model.") for name in adapted}
    ends: set[str] = set()
    for name in wanted:
        parts = name.split(".")
        ends_of_name = (".".join(parts[-count:]) for count in range(1, len(parts)))
        alone = (end for end in ends_of_name if not any(_means(end, "", other) for other in stems - wanted))
        ends.add(next(alone, name))
    return sorted(ends)


def _task_type(model: Model) -> str:
    """What PEFT calls the model's task; masked language models have no name of their own there."""
    config = model.config
    if not isinstance(config.head, LMHeadConfig) or not config.stack.is_causal:
        return "FEATURE_EXTRACTION"
    return "CAUSAL_LM" if config.encoder is None else "SEQ_2_SEQ_LM"


def _is_transposed(model: Model) -> bool:
    """Whether the checkpoint keeps its linears as (in, out): PEFT wants to know."""
    weights = model.architecture.weights(model.config)
    return any(weights[f"{name}.weight"].is_transposed for name in lora_layers(model))


_HONOURED: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
}  # fmt: skip
"""Keys of adapter_config.json that change the model, and the only value of each that is honoured."""


def load_adapter(model: Model, folder: Path) -> LoraConfig:
    """Put a saved adapter on a model; returns its config. Raises ModelError when it is not one for this model."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no adapter_config.json.", "Give the folder of a PEFT adapter.")
    theirs = read_json(path)
    for key, value in _HONOURED.items():
        if theirs.get(key, value) not in (value, None):
            raise ModelError(f"{path}: {key} is {theirs[key]!r}.", f"Only {value!r} is supported so far.")
    weights = folder / "adapter_model.safetensors"
    try:
        rank, alpha, named = theirs["r"], theirs["lora_alpha"], theirs["target_modules"]
        state = load_file(weights)
    except KeyError as error:
        raise ModelError(f"{path} lacks {error.args[0]!r}.", "Copy the adapter again.") from error
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no adapter_model.safetensors.", "Copy the adapter again.") from error
    except SafetensorError as error:
        raise ModelError(f"{weights} is damaged: {error}", "Copy the adapter again.") from error
    modules = {named} if isinstance(named, str) else set(named)
    modules = {ALL} if modules == {"all-linear"} else modules
    config = LoraConfig(rank=rank, alpha=alpha, targets=tuple(sorted(modules)))
    add_lora(model, config)
    load_lora_state(model, state)
    return config
