"""Adapters as files: PEFT's adapter_config.json and adapter_model.safetensors, read and written.

A projection is named as in the original checkpoint, whatever our linears fuse; weights that trained in full stand
beside it, as PEFT's modules_to_save. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from danlu.core.files import write_json
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.linear import rows_of_parts
from danlu.models.lora import LoraConfig, LoraPart, means_linear
from danlu.models.model import Model
from danlu.models.peft import PEFT_ROOT, PeftFolder, bare_prefix, check_fits, copies_of, known_names, peft_name
from danlu.models.tensors import save_tensors
from danlu.models.untie import untie
from danlu.models.weights import Source
from danlu.train.lora import add_lora, lora_layers


def lora_state(model: Model) -> dict[str, Tensor]:
    """Adapter tensors under PEFT's names, one set a projection of the original checkpoint, and what trains beside."""
    stems, state = _stems(model), dict[str, Tensor]()
    for ours, layer in lora_layers(model).items():
        for stem, tensors in zip(stems[ours], layer.tensors(), strict=True):
            state |= {f"{stem}.{name}": tensor.detach().clone() for name, tensor in tensors.items()}
    copies = copies_of(model)
    for ours, (parameter, source) in _trained_beside(model).items():
        layer = model.network.get_submodule(ours.rpartition(".")[0])
        theirs = source.split(parameter.detach(), rows_of_parts(layer) if len(source.names) > 1 else ())
        theirs |= {copy: theirs[original] for copy, original in copies.items() if original in theirs}
        state |= {
            peft_name(model, name): tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in theirs.items()
        }
    return state


def load_lora_state(model: Model, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``lora_state``; raises ModelError when a tensor is missing, unknown or misshapen."""
    expected = lora_state(model)
    check_fits({n: t.shape for n, t in expected.items()}, {n: t.shape for n, t in state.items()})
    stems = _stems(model)
    with torch.no_grad():
        for ours, layer in lora_layers(model).items():
            for stem, tensors in zip(stems[ours], layer.tensors(), strict=True):
                for name, tensor in tensors.items():
                    tensor.copy_(state[f"{stem}.{name}"])
        for parameter, source in _trained_beside(model).values():
            parameter.copy_(source.join(lambda name: state[peft_name(model, name)], parameter.shape))


def save_adapter(model: Model, folder: Path, config: LoraConfig, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT and vLLM read them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = lora_state(model)
    save_tensors(state, folder / "adapter_model.safetensors")
    parts = {name.removeprefix(PEFT_ROOT): part for name, part in _parts(model).items()}
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": _task_type(model),
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "rank_pattern": {name: part.rank for name, part in parts.items() if part.rank != config.rank},
            "alpha_pattern": {name: part.alpha for name, part in parts.items() if part.alpha != config.alpha},
            "bias": "none",
            "fan_in_fan_out": _is_transposed(model),
            "inference_mode": True,
            "target_modules": _target_modules(model, parts.keys()),
            "modules_to_save": _modules_to_save(model, state.keys()) or None,
            "ensure_weight_tying": any(peft_name(model, copy) in state for copy in copies_of(model)),
        },
    )


def load_adapter(model: Model, folder: Path) -> LoraConfig:
    """Put a saved adapter on a model; returns its config. Raises ModelError when it is not one for this model.

    A table of tokens that the adapter took apart from a tied head is untied here as well.
    """
    found = PeftFolder(folder)
    config, state = found.config, found.read_all()
    _untie_as(model, state)
    known = {peft_name(model, name): name for name in known_names(model)}
    beside = {known[name].rpartition(".")[0] for name in state.keys() & known.keys()}
    config = replace(config, train_also=tuple(sorted(beside)))
    add_lora(model, config)
    load_lora_state(model, state)
    return config


def _untie_as(model: Model, state: Mapping[str, Tensor]) -> None:
    """Untie table and head when an adapter has another of one than of the other, or only one."""
    if not isinstance(model.config.head, LMHeadConfig) or not model.config.is_tied:
        return
    table = model.architecture.weights(model.config)["embedding.tokens.weight"].names[0]
    uses = [table, *(copy for copy, original in copies_of(model).items() if original == table)]
    found = [state.get(peft_name(model, name)) for name in uses]
    given = [tensor for tensor in found if tensor is not None]
    if given and (len(given) < len(found) or not all(torch.equal(given[0], other) for other in given[1:])):
        untie(model)


def _stems(model: Model) -> dict[str, list[str]]:
    """For each adapter, PEFT's names of its projections."""
    names = model.architecture.weights(model.config)
    return {
        ours: [
            peft_name(model, theirs.removesuffix(".weight"))
            for theirs, chosen in zip(names[f"{ours}.weight"].names, layer.chosen, strict=True)
            if chosen
        ]
        for ours, layer in lora_layers(model).items()
    }


def _parts(model: Model) -> dict[str, LoraPart]:
    """PEFT's name of every adapted projection → its numbers."""
    stems, found = _stems(model), dict[str, LoraPart]()
    for ours, layer in lora_layers(model).items():
        kept = [part for part in layer.parts if part.rank]
        found |= zip(stems[ours], kept * (len(stems[ours]) // len(kept)), strict=True)
    return found


def _trained_beside(model: Model) -> dict[str, tuple[nn.Parameter, Source]]:
    """What trains in full beside the adapters: our name → the weight and where it comes from."""
    weights = model.architecture.weights(model.config)
    inside = tuple(f"{name}." for name in lora_layers(model))
    return {
        name: (parameter, weights[name])
        for name, parameter in model.network.named_parameters()
        if parameter.requires_grad and not name.startswith(inside)
    }


def _target_modules(model: Model, wanted: Set[str]) -> list[str]:
    """The shortest ends of names that mean the adapted projections and nothing else of the checkpoint."""
    prefix = bare_prefix(model)
    names = [name for source in model.architecture.weights(model.config).values() for name in source.names]
    stems = {name.removesuffix(".weight").removeprefix(prefix) for name in (*names, *model.unused)}
    ends: set[str] = set()
    for name in wanted:
        parts = name.split(".")
        ends_of_name = (".".join(parts[-count:]) for count in range(1, len(parts)))
        alone = (end for end in ends_of_name if not any(means_linear(end, "", other) for other in stems - wanted))
        ends.add(next(alone, name))
    return sorted(ends)


def _modules_to_save(model: Model, state: Set[str]) -> list[str]:
    """The outermost modules of which every tensor trains beside the adapter, and single ones where none does."""
    names = {peft_name(model, name) for name in known_names(model)}
    beside, modules = names & state, set[str]()
    for name in beside:
        parts = name.split(".")
        outer = [".".join(parts[:count]) for count in range(PEFT_ROOT.count(".") + 1, len(parts))]
        whole = (module for module in outer if all(n in beside for n in names if n.startswith(f"{module}.")))
        modules.add(next(whole, outer[-1]).removeprefix(PEFT_ROOT))
    return sorted(modules)


def _task_type(model: Model) -> str:
    """What PEFT calls the model's task; it trains the head of classifiers and taggers by itself, so only where we do.

    Masked language models have no name of their own there.
    """
    config = model.config
    if isinstance(config.head, LMHeadConfig) and config.stack.is_causal:
        return "CAUSAL_LM" if config.encoder is None else "SEQ_2_SEQ_LM"
    trains_head = any(name.startswith("head.") for name in _trained_beside(model))
    if trains_head and isinstance(config.tower.input, TokensConfig):
        kinds = {ClassifyConfig: "SEQ_CLS", TagConfig: "TOKEN_CLS"}
        return kinds.get(type(config.head), "FEATURE_EXTRACTION")
    return "FEATURE_EXTRACTION"


def _is_transposed(model: Model) -> bool:
    """Whether the checkpoint keeps its linears as (in, out): PEFT wants to know."""
    weights = model.architecture.weights(model.config)
    return any(weights[f"{name}.weight"].is_transposed for name in lora_layers(model))
