"""Bits per byte of held-out documents: a language model beside xz and n-grams that read the same training documents.

The protocol. Documents and which of them are held out are those of the tokenize stage. Each held-out document is told
from its beginning, without the others, up to and with its end, and the bits of ends count for all: a separator for the
model, a symbol of its own for the n-grams, NUL for xz. Bytes are those of the text alone, in UTF-8. The model and the
n-grams are frozen; xz, which is charged for the growth of its file, may also copy from held-out documents before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import read_json, write_json
from danlu.data.shards import TokenShards
from danlu.evaluate.baselines import LONGEST, KneserNey, xz
from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.text.tokenizer import TextTokenizer
from danlu.train.held_out import held_out
from danlu.train.objectives.choose import choose


@dataclass(frozen=True, kw_only=True)
class BitsPerByteConfig:
    """How a model's bits per byte of held-out documents are measured, and beside what."""

    row_tokens: int | None = None
    """Most tokens that the model sees at once: those of its training rows; if left out what its context holds."""
    orders: tuple[int, ...] = (4, 5, 6)
    """Bytes of the n-grams that interpolated Kneser-Ney counts, the told one included; none: []."""
    with_xz: bool = True
    """Whether xz is measured too: it compresses all training text, which takes a minute for 40 MB."""

    def __post_init__(self) -> None:
        if self.row_tokens is not None and self.row_tokens < 2:
            raise ConfigError(f"row_tokens is {self.row_tokens}.", "Use 2 or more.")
        wrong = [order for order in self.orders if not 1 <= order <= LONGEST]
        if wrong:
            raise ConfigError(f"orders holds {wrong[0]}.", f"Use 1 to {LONGEST}.")


class BitsPerByte(RecipeStage[BitsPerByteConfig]):
    """The plugin."""

    config_type = BitsPerByteConfig
    version = 1
    kind = "evaluation"
    inputs: Mapping[str, str] = {
        "model": "the model folder, with the tokenizer that made the tokens",
        "tokens": "shards: train/ and validation/ of the tokenize stage",
    }
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "more shards; only their train/ is used"}
    uses_seed = False

    def run(self, config: BitsPerByteConfig, context: StageContext) -> dict[str, Any]:
        model = load_model(context.inputs["model"])
        more = [path for name, path in context.inputs.items() if name not in ("model", "tokens")]
        train = [TokenShards(folder / "train") for folder in (context.inputs["tokens"], *more)]
        validation = TokenShards(context.inputs["tokens"] / "validation")
        if not validation.num_documents:
            raise DataError("The shards hold out no document.", "Raise validation_share of the tokenize stage.")
        documents = list(texts(validation, model.chat.tokenizer))
        known = [text for shards in train for text in texts(shards, model.chat.tokenizer)]
        found = _measure(model, validation, known, documents, config, context)
        orders = {order: found[_name(order)] for order in config.orders}
        metrics: dict[str, Any] = {
            "model": found["model"],
            "xz": found.get("xz"),
            "kneser_ney": min(orders.values(), default=None),
            "kneser_ney_of_order": {str(order): bits for order, bits in orders.items()},
            "parameters": model.num_parameters(),
            "held_out_documents": len(documents),
            "held_out_bytes": sum(map(len, documents)),
            "train_documents": len(known),
            "train_bytes": sum(map(len, known)),
        }
        write_json(context.output / "bits_per_byte.json", metrics)
        for line in _table(found):
            context.events.say(line)
        return metrics


def texts(shards: TokenShards, tokenizer: TextTokenizer) -> Iterator[bytes]:
    """The documents that shards were made of, in UTF-8.

    Raises DataError at the end when they are not as many bytes as the index tells of (0: it does not know): another
    tokenizer, or one that does not give text back as it was.
    """
    total = 0
    for ids in shards.documents():
        text = tokenizer.decode(ids.tolist()).encode()
        total += len(text)
        yield text
    if shards.index.text_bytes not in (0, total):
        raise DataError(
            f"The tokens of {shards.folder.name} decode to {total:,} bytes; they were made of "
            f"{shards.index.text_bytes:,}.",
            "Give the model whose tokenizer made them; it must give text back byte for byte.",
        )


def _measure(
    model: Model,
    validation: TokenShards,
    train: Sequence[bytes],
    documents: Sequence[bytes],
    config: BitsPerByteConfig,
    context: StageContext,
) -> dict[str, float]:
    """Name → bits per byte, rounded; what an earlier try measured is kept in the work folder."""
    text_bytes = sum(map(len, documents))
    ways: dict[str, Callable[[], float]] = {"model": lambda: _bits(model, validation, config) / text_bytes}
    if config.with_xz:
        ways["xz"] = lambda: xz(train, documents).bits_per_byte
    for order in config.orders:
        ways[_name(order)] = lambda order=order: KneserNey(train, order).measure(documents).bits_per_byte
    kept = context.work / "found.json"
    found: dict[str, float] = read_json(kept) if kept.is_file() else {}
    with context.events.bar("bits per byte", total=len(ways), unit="predictors", done=len(found)) as bar:
        for name, way in ways.items():
            if name not in found:
                found[name] = round(way(), 4)
                write_json(kept, found)
                bar.advance(bits_per_byte=found[name])
    return found


def _name(order: int) -> str:
    return f"Kneser-Ney, {order} bytes"


def _bits(model: Model, validation: TokenShards, config: BitsPerByteConfig) -> float:
    """What the model needs for all held-out documents with their ends."""
    row_tokens = config.row_tokens or model.config.context_length
    if row_tokens > model.config.context_length:
        raise ConfigError(
            f"row_tokens is {row_tokens}, the model reads {model.config.context_length} tokens.", "Use fewer."
        )
    separator = choose(model, None, row_tokens, "packed").separator
    return held_out(model.network, validation, row_tokens=row_tokens, separator=separator).nats / math.log(2)


def _table(found: Mapping[str, float]) -> Iterator[str]:
    """A line each, the best first."""
    width = max(map(len, found))
    yield f"{'bits per byte':<{width + 2}} lower is better"
    for name, bits in sorted(found.items(), key=lambda pair: pair[1]):
        yield f"  {name:<{width}} {bits:6.3f}"


plugin = BitsPerByte()
