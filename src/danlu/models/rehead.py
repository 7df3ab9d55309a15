"""A new head on a model's body: what a fine-tuned classifier, tagger, embedder or reward model begins as.

    model = with_head(load_model(path), NewClassifier(labels=("bad", "good")), seed=1, source=path)

The result is a plain model of its family, told by its own config.json, so what is saved loads in transformers too.
Knows no training and no family but those of which transformers has no such head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ModelError
from danlu.models.archs._keys import HEADS
from danlu.models.checkpoint import core_config, open_checkpoint
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.load import empty_network
from danlu.models.model import Model, set_layer
from danlu.models.network import ModelConfig, Network
from danlu.models.norms import RMSNorm
from danlu.models.pooling import Pooling
from danlu.models.sentence import SentenceConfig

_SPREAD = 0.02
"""New matrices are drawn from N(0, 0.02), as every family here begins."""
_ABSENT = {
    "ForSequenceClassification": {"mamba2", "olmoe"},
    "ForTokenClassification": {"gemma3_text", "mamba2", "olmo2", "olmoe"},
}
"""Families that could have this head, but transformers has no class for it, so nobody else could load it."""
_POOLING_KEYS = {"modernbert": ("classifier_pooling", {"first": "cls", "mean": "mean"})}
"""Families whose config.json says what a classifier reads."""
_WORDS: Mapping[Pooling, str] = {"first": "the first token", "mean": "the mean of all tokens", "last": "the last token"}


@dataclass(frozen=True, kw_only=True)
class NewClassifier:
    """A logit for each label of a text or an image."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    pooling: Pooling | None = None
    """Which tokens are read; null for what the family does."""
    multi_label: bool = False
    """Whether labels are independent of each other."""

    def __post_init__(self) -> None:
        _check_labels(self.labels, fewest=1 if self.multi_label else 2)


@dataclass(frozen=True, kw_only=True)
class NewTagger:
    """A logit for each label of every token."""

    labels: tuple[str, ...]
    """Names of the tags, in the order of the logits; entities as B-X, I-X and O."""

    def __post_init__(self) -> None:
        _check_labels(self.labels, fewest=2)


@dataclass(frozen=True, kw_only=True)
class NewEmbedder:
    """One vector a text, as sentence-transformers does it; it has no weights of its own."""

    pooling: Pooling = "mean"
    """Which tokens are read."""
    normalise: bool = True
    """Whether vectors have length 1."""


@dataclass(frozen=True, kw_only=True)
class NewScorer:
    """One logit a text: a reward model, or a cross-encoder that ranks."""

    pooling: Pooling | None = None
    """Which tokens are read; null for what the family does."""


NewHead = NewClassifier | NewTagger | NewEmbedder | NewScorer


def with_head(model: Model, wanted: NewHead, *, seed: int = 0, source: Path | None = None) -> Model:
    """The same body under a fresh head; shares the body's weights with ``model``, which is done with.

    The last layer always begins anew, N(0, 0.02). What comes before it in the head (BERT's pooler) is taken from the
    old head, or from ``source``, the folder or file that ``model`` was loaded from, where these have it. Weights are
    frozen and of the model's number type, as loaded ones are. Raises ModelError when the family has no such head.
    """
    theirs = _config_for(model, wanted)
    config = _read(model, theirs, wanted)
    sentence = None
    if isinstance(wanted, NewEmbedder):
        sentence = SentenceConfig(pooling=wanted.pooling, normalise=wanted.normalise)
        config = replace(config, head=sentence.head)
    network = empty_network(config)
    assert isinstance(network, Network)
    _move_body(model, network)
    if source is not None and model.scheme is None:
        _read_spare(model, network, source)
    _begin(network, seed, _number_type(model), model.device)
    network.tie()
    network.train(model.network.training)
    made = Model(
        network,
        theirs,
        model.architecture,
        dtype=model.activation_dtype,
        chat=model.chat if model.has_tokenizer else None,
        scheme=model.scheme,
    )
    made.generation, made.sentence, made.licence = model.generation, sentence, model.licence
    return made


def _check_labels(labels: tuple[str, ...], fewest: int) -> None:
    if len(labels) < fewest:
        raise ConfigError(f"labels has {len(labels)} names.", f"Give at least {fewest}.")
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"labels has {doubled[0]!r} twice.", "Keep one of them.")


def _config_for(model: Model, wanted: NewHead) -> dict[str, Any]:
    """The model's config.json, with another head and its labels."""
    theirs = {key: value for key, value in model.theirs.items() if key not in ("num_labels", "_num_labels")}
    theirs["architectures"] = [_stem(model) + _ending(model, wanted)]
    if isinstance(wanted, NewEmbedder):
        return theirs
    labels = ("score",) if isinstance(wanted, NewScorer) else wanted.labels
    theirs["id2label"] = {str(number): label for number, label in enumerate(labels)}
    theirs["label2id"] = {label: number for number, label in enumerate(labels)}
    theirs.pop("problem_type", None)
    if isinstance(wanted, NewClassifier):
        theirs["problem_type"] = f"{'multi' if wanted.multi_label else 'single'}_label_classification"
    if not isinstance(wanted, NewTagger):
        key, words = _POOLING_KEYS.get(model.architecture.model_type, ("", {}))
        if wanted.pooling in words:
            theirs[key] = words[wanted.pooling]
    if model.architecture.model_type == "siglip":  # what compares images with texts is not read by a classifier
        theirs["vision_config"] = {**(theirs.get("vision_config") or {}), "vision_use_head": False}
    if theirs.get("pad_token_id") is None and model.has_tokenizer and model.chat.tokenizer.pad_id is not None:
        theirs["pad_token_id"] = model.chat.tokenizer.pad_id  # by which transformers finds the last token
    return theirs


def _stem(model: Model) -> str:
    """What the family's classes of transformers begin with: "Bert", "Llama"."""
    named = str((model.theirs.get("architectures") or [""])[0])
    for ending in HEADS:
        if named.endswith(ending):
            return named.removesuffix(ending)
    return "".join(word.title() for word in model.architecture.model_type.replace("-", "_").split("_"))


def _ending(model: Model, wanted: NewHead) -> str:
    """What the class with the wanted head ends with."""
    config = model.config if isinstance(model.config, ModelConfig) else None  # a pair of networks has another
    reads_tokens = config is not None and isinstance(config.tower.input, TokensConfig)
    if isinstance(wanted, NewClassifier) and not reads_tokens:
        return "ForImageClassification"
    if not reads_tokens:
        raise ModelError(f"This model reads no text, which a {_KINDS[type(wanted)]} does.", "Give it a classifier.")
    assert config is not None
    if isinstance(wanted, NewEmbedder):
        return "Model" if config.encoder is None else "EncoderModel"
    return "ForTokenClassification" if isinstance(wanted, NewTagger) else "ForSequenceClassification"


def _read(model: Model, theirs: Mapping[str, Any], wanted: NewHead) -> ModelConfig:
    """What the family makes of the new config.json; raises ModelError when it has no such head."""
    family, ending = model.architecture.model_type, str(theirs["architectures"][0])
    refused = ModelError(f"A '{family}' cannot be made a {_KINDS[type(wanted)]}.", "Use a model of another family.")
    if any(ending.endswith(end) and family in families for end, families in _ABSENT.items()):
        raise refused
    try:
        config = core_config(model.architecture, theirs)
    except ModelError as error:
        raise refused from error
    pooling = None if isinstance(wanted, NewTagger | NewEmbedder) else wanted.pooling
    if isinstance(config.head, ClassifyConfig) and pooling not in (None, config.head.pooling):
        raise ModelError(
            f"A '{family}' with classes reads {_WORDS[config.head.pooling]}, not {_WORDS[pooling]}.",
            "Leave pooling out.",
        )
    return config


def _move_body(model: Model, network: Network) -> None:
    """Put every weight that both heads have, under the same names of the checkpoint, into the new network."""
    old, architecture = model.network, model.architecture
    known = {source: ours for ours, source in architecture.weights(model.config).items()}
    for ours, source in architecture.weights(network.config).items():
        if source not in known or ours.startswith("head.linear."):
            continue
        (owner, _, attribute), (old_owner, _, old_attribute) = ours.rpartition("."), known[source].rpartition(".")
        layer = old.get_submodule(old_owner)
        if any(True for _ in layer.children()):
            setattr(network.get_submodule(owner), attribute, getattr(layer, old_attribute))
        else:
            set_layer(network, owner, layer)  # whatever it is by now: 8-bit, for example
    left = [name for name, weight in network.named_parameters() if weight.is_meta and not name.startswith("head.")]
    assert not left, f"another body: {left}"


def _read_spare(model: Model, network: Network, path: Path) -> None:
    """Fill what is still empty, the last layer left out, with tensors that the old head did not read."""
    checkpoint = open_checkpoint(path, with_tokenizer=False)
    if checkpoint.scheme is not None:
        return
    stored, prefix = checkpoint.tensors.names(), model.architecture.prefix
    state = network.state_dict(keep_vars=True)

    def find(name: str) -> str | None:
        return next((one for one in (name, name.removeprefix(prefix)) if one in stored), None)

    for ours, source in model.architecture.weights(network.config).items():
        files = {name: find(name) for name in source.names}
        if not state[ours].is_meta or ours.startswith("head.linear.") or None in files.values():
            continue
        weight = source.join(lambda name, files=files: checkpoint.tensors.read(str(files[name])), state[ours].shape)
        if weight.shape == state[ours].shape:
            _put(network, ours, weight, _number_type(model), model.device)


def _number_type(model: Model) -> torch.dtype:
    """That of the body's weights; one that is about to train has them in fp32 though it computes in bf16."""
    kinds = (weight.dtype for weight in model.network.parameters() if weight.is_floating_point())
    return next(kinds, model.activation_dtype)


def _begin(network: Network, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    """Draw what is still empty: matrices from N(0, 0.02), shifts at 0, norms that change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in list(network.named_parameters()):
        if not weight.is_meta:
            continue
        layer = network.get_submodule(name.rpartition(".")[0])
        if weight.dim() > 1:
            begun = torch.empty(weight.shape).normal_(0.0, _SPREAD, generator=generator)
        else:
            is_factor = name.endswith("weight") and not (isinstance(layer, RMSNorm) and layer.unit_offset)
            begun = torch.full(weight.shape, 1.0 if is_factor else 0.0)
        _put(network, name, begun, dtype, device)


def _put(network: Network, name: str, weight: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    owner, _, attribute = name.rpartition(".")
    parameter = nn.Parameter(weight.to(device=device, dtype=dtype), requires_grad=False)
    setattr(network.get_submodule(owner), attribute, parameter)


_KINDS = {NewClassifier: "classifier", NewTagger: "tagger", NewEmbedder: "text embedder", NewScorer: "scorer"}
