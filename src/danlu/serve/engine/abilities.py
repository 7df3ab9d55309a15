"""What a model can be asked for, and what clients are told of it. Knows no requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from danlu.core.errors import ModelError
from danlu.models.encode import embedding_head, relevance_label, text_limit, vector_width
from danlu.models.generate import check_writes
from danlu.models.heads.classify import ClassifyHead
from danlu.models.heads.tag import TagHead
from danlu.models.inputs.tokens import TokenInput
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.pair import PairNetwork
from danlu.models.vision import reads_images
from danlu.serve.engine.request import Ability, ServedModel
from danlu.text.answer import can_think


def abilities(model: Model) -> frozenset[Ability]:
    """What its head allows; nothing for a body without a head."""
    if _can(check_writes, model):
        return frozenset({"write"})
    found: set[Ability] = set()
    head = model.network.head
    if isinstance(model.network, EncoderDecoder):
        return frozenset()
    if isinstance(head, TagHead):
        found.add("tag")
    elif isinstance(head, ClassifyHead):
        found.add("classify")
    elif _can(embedding_head, model):
        found.add("embed")
    if reads_texts(model) and ("embed" in found or _can(relevance_label, model)):
        found.add("score")
    return frozenset(found)


def reads_texts(model: Model) -> bool:
    """Whether texts come in (beside images, for pairs)."""
    return isinstance(model.network, PairNetwork) or isinstance(model.network.embedding, TokenInput)


def served_model(model: Model, name: str, *, created: int = 0) -> ServedModel:
    """What clients are told of a resident model."""
    can = abilities(model)
    head = model.network.head
    return ServedModel(
        name=name,
        abilities=can,
        context_length=model.config.context_length if "write" in can else text_limit(model),
        created=created,
        width=vector_width(model) if "embed" in can else 0,
        labels=tuple(head.config.labels) if isinstance(head, ClassifyHead | TagHead) else (),
        takes_images=reads_images(model),
        tool_format=model.chat.tool_format if model.has_tokenizer else "hermes",
        thinks=_thinks(model),
    )


def _thinks(model: Model) -> Literal["no", "may", "at_once"]:
    """Whether answers begin with thoughts, as the chat template tells."""
    if not model.has_tokenizer or not can_think(model.chat.source):
        return "no"
    return "at_once" if model.chat.starts_thinking else "may"


def _can(check: Callable[[Model], object], model: Model) -> bool:
    try:
        check(model)
    except ModelError:
        return False
    return True
