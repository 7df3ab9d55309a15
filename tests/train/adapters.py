"""A tiny Llama with adapters, ours and peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.train.lora import LoraConfig, add_lora

from .chats import fresh

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Every linear of a Llama's blocks."""


def peer_model(folder: Path) -> Any:
    """The base in transformers, fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def our_logits(model: Model, ids: list[int]) -> torch.Tensor:
    """(T, V)."""
    return LoadedModel(model).logits(torch.tensor([ids]))[0]


def with_adapter(folder: Path, config: LoraConfig, spread: float = 0.2) -> Model:
    """A model whose adapter says something."""
    model = fresh(folder)
    torch.manual_seed(1)
    move(add_lora(model, config), spread)
    return model


@torch.no_grad()
def move(parameters: list[torch.nn.Parameter], spread: float = 0.2) -> None:
    """Away from where adapters begin: matrices anywhere, DoRA's lengths and weights trained in full a bit."""
    for parameter in parameters:
        begun = parameter if parameter.dim() == 1 or parameter.shape[0] > 300 else torch.zeros_like(parameter)
        parameter.copy_(begun + spread * torch.randn_like(parameter))
