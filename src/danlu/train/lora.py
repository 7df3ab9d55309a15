"""LoRA (Hu et al. 2021) on the core's linears: frozen base, two thin matrices a projection; PEFT's file layout.

Our linears may hold several projections of a checkpoint (queries, keys and values are one). Their A matrices are
stacked and their B matrices stand on a diagonal, so one fused linear costs two extra thin products, not six, and the
adapter still loads in ``peft`` projection by projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ModelError
from danlu.core.files import read_json, write_json
from danlu.models.load import Model, part_rows
from danlu.models.tensors import save_tensors

TARGETS = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linears get an adapter, and how large."""

    rank: int = 4
    """Columns of A and B: the adapter's size."""
    alpha: float = 8.0
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = TARGETS
    """Linears that get one: qkv, out, gate_up, down."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}.", "Use 1 or more.")
        if self.alpha <= 0:
            raise ConfigError(f"alpha is {self.alpha}.", "Use a positive number such as 8.0.")
        for target in self.targets:
            if target not in TARGETS:
                raise ConfigError(f"targets has {target!r}.", f"Known: {', '.join(TARGETS)}.")
        if not self.targets:
            raise ConfigError("targets is empty.", f"Name at least one of {', '.join(TARGETS)}.")


class LoraLinear(nn.Module):
    """y = x Wᵀ + (alpha / rank) (x Aᵀ) Bᵀ, W frozen. A starts random, B at zero, so y starts as the base's."""

    def __init__(self, base: nn.Linear, rows: tuple[int, ...], config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.rank = config.rank
        self.scaling = config.alpha / config.rank
        rows = tuple(base.out_features if r == -1 else r for r in rows)
        self.a = nn.Parameter(torch.empty(len(rows) * config.rank, base.in_features))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(r, config.rank)) for r in rows)
        bound = 1.0 / math.sqrt(base.in_features)  # kaiming_uniform with a = √5, as peft initialises
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, O); adapters are kept in fp32 and cast to the type of ``x`` for the product."""
        low = nn.functional.linear(x, self.a.to(x.dtype))  # (N, parts·r)
        up = self.b[0] if len(self.b) == 1 else torch.block_diag(*self.b)  # (O, parts·r)
        return torch.addmm(self.base(x), low, (up * self.scaling).to(x.dtype).t())

    def delta(self) -> Tensor:
        """The change of W this adapter makes, fp32 (O, D)."""
        up = self.b[0] if len(self.b) == 1 else torch.block_diag(*self.b)
        return (up.float() @ self.a.float()) * self.scaling


def add_lora(model: Model, config: LoraConfig) -> list[nn.Parameter]:
    """Wrap the target linears of a model in place; returns the trainable parameters (everything else is frozen)."""
    model.decoder.requires_grad_(False)
    trainable: list[nn.Parameter] = []
    for name, linear in list(_targets(model, config)):
        wrapped = LoraLinear(linear, part_rows(f"{name}.weight", model.config), config)
        owner, _, attribute = name.rpartition(".")
        setattr(model.decoder.get_submodule(owner), attribute, wrapped)
        trainable += [wrapped.a, *wrapped.b]
    return trainable


def _targets(model: Model, config: LoraConfig) -> list[tuple[str, nn.Linear]]:
    found = [
        (name, module)
        for name, module in model.decoder.named_modules()
        if name.rpartition(".")[2] in config.targets and isinstance(module, nn.Linear)
    ]
    if not found:
        raise ModelError("No linear of this model takes an adapter.", "Fine-tune plain weights, not a quantised model.")
    return found


def lora_layers(model: Model) -> dict[str, LoraLinear]:
    """All adapters by the name of the linear they wrap."""
    return {n: m for n, m in model.decoder.named_modules() if isinstance(m, LoraLinear)}


def merge_lora(model: Model) -> float:
    """Add every adapter to its base in fp32 and unwrap it; returns the largest change of a weight."""
    largest = 0.0
    for name, layer in lora_layers(model).items():
        delta = layer.delta()
        largest = max(largest, float(delta.detach().abs().max()))
        base = layer.base
        base.weight = nn.Parameter((base.weight.float() + delta).to(base.weight.dtype), requires_grad=False)
        owner, _, attribute = name.rpartition(".")
        setattr(model.decoder.get_submodule(owner), attribute, base)
    return largest


def lora_state(model: Model) -> dict[str, Tensor]:
    """Adapter tensors under PEFT's names, one pair a projection of the original checkpoint."""
    names = model.architecture.weight_names(model.config)
    state: dict[str, Tensor] = {}
    for ours, layer in lora_layers(model).items():
        for index, theirs in enumerate(names[f"{ours}.weight"]):
            stem = f"base_model.model.{theirs.removesuffix('.weight')}"
            rows = slice(index * layer.rank, (index + 1) * layer.rank)
            state[f"{stem}.lora_A.weight"] = layer.a.detach()[rows].clone()
            state[f"{stem}.lora_B.weight"] = layer.b[index].detach().clone()
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
    names = model.architecture.weight_names(model.config)
    with torch.no_grad():
        for ours, layer in lora_layers(model).items():
            stems = [f"base_model.model.{t.removesuffix('.weight')}" for t in names[f"{ours}.weight"]]
            layer.a.copy_(torch.cat([state[f"{stem}.lora_A.weight"] for stem in stems]))
            for b, stem in zip(layer.b, stems, strict=True):
                b.copy_(state[f"{stem}.lora_B.weight"])


def save_adapter(model: Model, folder: Path, config: LoraConfig, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT and vLLM read them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = lora_state(model)
    save_tensors(state, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in state})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": modules,
        },
    )


_HONOURED: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
}  # fmt: skip
"""Keys of adapter_config.json that change the model, and the only value of each that is honoured."""
_OURS = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "out",
    "gate_proj": "gate_up", "up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip


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
    if not modules <= _OURS.keys():
        raise ModelError(f"{path}: target_modules has {min(modules - _OURS.keys())!r}.", f"Known: {', '.join(_OURS)}.")
    targets = {_OURS[module] for module in modules}
    config = LoraConfig(rank=rank, alpha=alpha, targets=tuple(t for t in TARGETS if t in targets))
    add_lora(model, config)
    load_lora_state(model, state)
    return config
