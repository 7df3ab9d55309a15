"""A recommender: rows of items through a causal stack, after SASRec (Kang & McAuley 2018). Its config.json is our own:

    items                     names of the items; the first has id 1, for id 0 begins every row
    width                     64      width of the residual stream
    num_layers                2
    num_heads                 2
    feedforward               4 · width, inner width of the feed-forward layers
    max_items                 200     places of a row, the beginning included
    dropout                   0.2     of embeddings and of every branch, in training
    item_bias                 false   whether an item's score shifts, by how popular it is

Deviations: items are scored by the table they came in by, with a softmax over all of them; feed-forward layers are four
times as wide as the stream, GELU between; rows begin with a token of their own, so that an empty one says something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.rank import RankConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

BEGIN = 1
"""Ids before the first item: the one that begins a row."""
_LINEARS = ("mixer.inner.qkv", "mixer.inner.out", "feedforward.inner.up", "feedforward.inner.down")
_NORMS = ("mixer.input_norm", "feedforward.input_norm")


class Recommender(Architecture):
    """Maps the config above onto the core."""

    model_type = "recommender"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that makes no sense."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None)
        vocabulary_size = BEGIN + len(_names(keys.get("items")))
        width, heads, places = keys.integer("width", 64), keys.integer("num_heads", 2), keys.integer("max_items", 200)
        dropout = keys.number("dropout", 0.2)
        if heads < 1 or width % heads:
            raise ModelError(f"config.json: {heads} heads cannot share a width of {width}.", "It must be a multiple.")
        layer = LayerConfig(
            mixer=AttentionConfig(
                num_heads=heads, num_kv_heads=heads, head_width=width // heads, bias=True, out_bias=True
            ),
            feedforward=FeedForwardConfig(
                width=keys.integer("feedforward", 4 * width), activation="gelu", gated=False, bias=True
            ),
        )
        stack = StackConfig(
            width=width,
            layers=(layer,) * keys.integer("num_layers", 2),
            norm=NormConfig(kind="layer", bias=True),
            context_length=places,
            dropout=dropout,
        )
        tokens = TokensConfig(
            vocabulary_size=vocabulary_size,
            width=width,
            positions="learned",
            num_positions=places,
            scale=width**0.5,
            dropout=dropout,
        )
        head = RankConfig(vocabulary_size=vocabulary_size, reserved=BEGIN, bias=keys.flag("item_bias", False))
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Their names are ours, shorter."""
        names = {"embedding.tokens.weight": rows("items.weight"), "embedding.positions": rows("positions.weight")}
        for layer in range(config.num_layers):
            for part in (*_LINEARS, *_NORMS):
                ours, theirs = f"stack.blocks.{layer}.{part}", f"blocks.{layer}.{part.replace('.inner', '')}"
                names |= {f"{ours}.{kind}": rows(f"{theirs}.{kind}") for kind in ("weight", "bias")}
        names |= {f"stack.norm.{kind}": rows(f"norm.{kind}") for kind in ("weight", "bias")}
        if isinstance(config.head, RankConfig) and config.head.bias:
            names["head.linear.bias"] = rows("items.bias")
        return names


def _names(items: Any) -> list[str]:
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise ModelError(f"config.json: items is {items!r:.80}.", "It must be the list of all item names, as texts.")
    if len(set(items)) < len(items):
        raise ModelError("config.json: items has a name twice.", "Each item has one place.")
    return items


plugin = Recommender()
