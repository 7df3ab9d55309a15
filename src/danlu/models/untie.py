"""Two weights out of one: a language model whose head stops sharing the table of its tokens. Knows no training."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.checkpoint import core_config
from danlu.models.heads.lm import LMHead, LMHeadConfig
from danlu.models.model import Model


def untie(model: Model) -> None:
    """Give the head a copy of the table, and say so in config.json, or the saved model would lose one of the two.

    Raises ModelError where the family, or an 8-bit table, cannot have two.
    """
    head, old = model.network.head, model.config.head
    assert isinstance(head, LMHead)
    assert isinstance(old, LMHeadConfig)
    theirs = {**model.theirs, "tie_word_embeddings": False}
    untied = replace(old, tied=False)
    wanted = replace(model.config, head=untied)
    try:
        found = core_config(model.architecture, theirs)
    except ModelError as error:
        raise _refused(model) from error
    weight = head.linear.weight
    if found != wanted or not isinstance(weight, nn.Parameter):
        raise _refused(model)
    copy: Tensor = weight.detach().clone()
    head.linear.weight = nn.Parameter(copy, requires_grad=weight.requires_grad)
    head.config = untied
    model.network.config = wanted
    model.theirs = theirs


def _refused(model: Model) -> ModelError:
    return ModelError(
        f"This '{model.architecture.model_type}' reads and writes tokens with one table, and cannot have two.",
        "Train the table and the head together, or neither.",
    )
