"""A loaded model: the network, the config it came with, and how it wants its text. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.block import StackConfig
from danlu.models.defaults import GenerationDefaults
from danlu.models.inputs.tokens import TokenInput
from danlu.models.licence import Licence
from danlu.models.network import ModelConfig, Network
from danlu.models.sentence import SentenceConfig
from danlu.text.chat import ChatFormat

Precision = Literal["fp32", "bf16"]


class Model:
    """Network, family, tokenizer and template."""

    def __init__(
        self,
        network: Network,
        theirs: Mapping[str, Any],
        architecture: Architecture,
        *,
        dtype: torch.dtype,
        chat: ChatFormat | None = None,
        scheme: str | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        """``generation`` is the model's generation_config.json."""
        self.network = network
        self.theirs = dict(theirs)
        """The model's config.json."""
        self.architecture = architecture
        self.activation_dtype = dtype
        """Number type of hidden states."""
        self.scheme = scheme
        """None for plain weights, "int8" for quantised ones."""
        self.is_packed = False
        """Whether its weights are laid out for inference and never change."""
        self.unused: tuple[str, ...] = ()
        """Tensors of the checkpoint that this head does not read; they are not saved again."""
        self.sentence: SentenceConfig | None = None
        """How a sentence model reads texts; None for every other model."""
        self.licence = Licence()
        """Under what terms it may be used, as its makers say; it goes where the model goes."""
        self.generation = GenerationDefaults.read(self.theirs, generation)
        """Where its answers begin and end, and the settings its makers chose."""
        self._chat = chat

    @property
    def config(self) -> ModelConfig:
        """The numbers of the network."""
        return self.network.config

    @property
    def stack_config(self) -> StackConfig:
        """The numbers of the stack that the head reads."""
        return self.network.config.stack

    @property
    def chat(self) -> ChatFormat:
        """Tokenizer and template; raises ModelError when the model came without a tokenizer."""
        if self._chat is None:
            raise ModelError(
                "This model has no tokenizer.", "Put its tokenizer.json into the folder, or give token ids."
            )
        return self._chat

    @property
    def has_token_types(self) -> bool:
        """Whether it matters which text of a pair a token belongs to."""
        tokens = getattr(self.network, "embedding", None)
        return isinstance(tokens, TokenInput) and tokens.config.num_types > 1

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be given."""
        return self._chat is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    @property
    def precision(self) -> Precision:
        """Number type of the activations: fp32 or bf16."""
        return "bf16" if self.activation_dtype == torch.bfloat16 else "fp32"

    def num_parameters(self) -> int:
        """Weights of the model, tied ones counted once; statistics and scales are none."""
        with torch.device("meta"):
            plain = self.config.make()
        return sum(parameter.numel() for parameter in plain.parameters())


def set_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace one layer by its dotted name."""
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, attribute, layer)
