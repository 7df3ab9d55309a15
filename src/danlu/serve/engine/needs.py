"""What a model would take and what it can, told without reading its weights; and what memory there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from danlu.core.device import pick_device
from danlu.models.counts import memory_bytes
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.load import describe_model, empty_network
from danlu.models.model import Model
from danlu.models.paged import PAGE, bytes_of_page
from danlu.serve.engine.abilities import served_model
from danlu.serve.engine.config import available_bytes
from danlu.serve.engine.request import ServedModel
from danlu.serve.engine.spec import ModelSpec

_LEAST_CACHE_TOKENS = 2048
"""Tokens that a model's cache should hold at least, if its context is as long."""


@dataclass(frozen=True)
class Needs:
    """A model that is not in memory."""

    size_bytes: int
    """Of weights, a small cache, and what passes through while it is loaded."""
    served: ServedModel | None
    """What clients are told; None while that is not known."""


def describe(spec: ModelSpec, created: int) -> Needs:
    """Read a model's config and tokenizer. Raises ModelError for files that are no model."""
    scheme = None if spec.scheme == "none" else spec.scheme
    model = describe_model(Path(spec.path), precision=spec.precision, scheme=scheme)
    return Needs(size_of(model), served_model(model, spec.name, created=created))


def size_of(model: Model) -> int:
    """Bytes that serving a model takes, about: it is never more than a few per cent beside it."""
    network = empty_network(model.config)
    size = memory_bytes(network)[model.scheme or model.precision]
    largest = max((parameter.numel() for parameter in network.parameters()), default=0)
    size += largest * 4  # is expanded while it is read; and a tied head has a table of its own
    if isinstance(model.config.head, LMHeadConfig):
        stack = model.stack_config
        tokens = min(stack.context_length, _LEAST_CACHE_TOKENS)
        size += bytes_of_page(stack, model.activation_dtype) // PAGE * tokens
    return size


def free_bytes() -> int:
    """Memory that models may still take on the device they are loaded to."""
    device = pick_device()
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
