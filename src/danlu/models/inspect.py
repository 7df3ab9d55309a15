"""What a model is, told from its config and the headers of its files: no weight is read, nothing is allocated.

A folder, a GGUF file, or a config.json alone. What the model costs is counted in counts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danlu.core.config import to_mapping
from danlu.core.errors import ModelError
from danlu.core.files import read_json
from danlu.models.archs import Architecture
from danlu.models.block import StackConfig
from danlu.models.checkpoint import (
    core_config,
    find_architecture,
    read_chat,
    read_config,
    read_gguf_config,
    read_scheme,
)
from danlu.models.counts import DEFINITIONS, Counts, count
from danlu.models.gguf import GGUFFile
from danlu.models.licence import find_licence, licence_from_gguf
from danlu.models.network import ModelConfig
from danlu.models.pair import PairConfig
from danlu.models.sentence import read_sentence
from danlu.models.tensors import TensorFiles
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import tokenizer_from_gguf


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """How a model cuts text."""

    kind: str
    """BPE, WordPiece, Unigram or WordLevel."""
    vocabulary_size: int
    """Ids it can give."""
    special_tokens: tuple[str, ...]
    """Tokens that text cannot become, by id."""
    end_tokens: tuple[str, ...]
    """Those that end an answer."""
    has_chat_template: bool
    """Whether messages can be given."""


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """A stored tensor."""

    name: str
    """As in the file."""
    shape: tuple[int, ...]
    """Rows first."""
    dtype: str
    """As the format calls it."""
    size_bytes: int
    """In the file."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model is."""

    source: str
    """Where it lies; "" for a config given in words."""
    family: str
    """``model_type`` of its config.json."""
    head: str
    """What it answers: lm, classify, tag, embed, pair, …; hidden for hidden states alone."""
    layers: int
    """Blocks of its main stack."""
    width: int
    """D of its main stack."""
    context: int
    """Most tokens of a row."""
    counts: Counts
    """What it costs."""
    tokenizer: TokenizerFacts | None
    """None when it has none."""
    licence: str | None
    """As its card, metadata or licence file says; None when none says."""
    scheme: str | None
    """How a danlu folder is quantised; None for plain weights."""
    tensors: tuple[TensorFacts, ...]
    """What is stored; empty for a config alone."""

    @property
    def stored_bytes(self) -> int:
        """All tensors in the files."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def inspect_model(path: Path, changes: Mapping[str, Any] | None = None, length: int | None = None) -> ModelFacts:
    """Facts of a folder, a .gguf file or a config.json. ``changes`` replace keys of its config.json, for "what if";
    then what is stored is left out. ``length`` is the row that FLOPs are counted for.

    Raises ModelError when it is no model of a known family.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path, changes or {}, length)
    if path.is_file() and path.suffix == ".json":
        theirs = read_json(path)
        if not isinstance(theirs, dict):
            raise ModelError(f"{path} is not an object.", "Give a model's config.json.")
        return inspect_config({**theirs, **(changes or {})}, length, source=str(path))
    if not path.is_dir():
        raise ModelError(f"There is no model at {path}.", "Give a model folder, a .gguf file or a config.json.")
    architecture, theirs = read_config(path)
    folder = str(path)
    if changes:
        return inspect_config({**theirs, **changes}, length, source=folder)
    scheme = read_scheme(path)
    tensors = _stored(path) if any(path.glob("*.safetensors")) else ()
    config, sentence = core_config(architecture, theirs), read_sentence(path)
    if tensors:
        config = architecture.fit(config, {tensor.name for tensor in tensors})
    return _facts(
        architecture,
        config if sentence is None else replace(config, head=sentence.head),
        length,
        source=folder,
        chat=read_chat(path),
        licence=find_licence(path),
        scheme=scheme,
        tensors=tensors,
    )


def inspect_config(theirs: Mapping[str, Any], length: int | None = None, *, source: str = "") -> ModelFacts:
    """Facts of a config.json's content alone: ``model_type`` names the family."""
    architecture = find_architecture(str(theirs.get("model_type", "(none)")))
    return _facts(architecture, core_config(architecture, theirs), length, source=source)


def as_mapping(facts: ModelFacts, *, tensors: bool = True) -> dict[str, Any]:
    """For JSON, with what the numbers mean."""
    whole = to_mapping(facts)
    whole["counts"]["other_parameters"] = facts.counts.other_parameters
    whole |= {"stored_bytes": facts.stored_bytes, "definitions": DEFINITIONS}
    if not tensors:
        del whole["tensors"]
    return whole


def _facts(
    architecture: Architecture,
    config: ModelConfig | PairConfig,
    length: int | None,
    *,
    source: str,
    chat: ChatFormat | None = None,
    licence: str | None = None,
    scheme: str | None = None,
    tensors: tuple[TensorFacts, ...] = (),
) -> ModelFacts:
    stack: StackConfig = config.text.stack if isinstance(config, PairConfig) else config.stack
    if length is not None and length < 1:
        raise ModelError(f"The row has {length} tokens.", "Use 1 or more.")
    return ModelFacts(
        source=source,
        family=architecture.model_type,
        head="hidden" if config.head is None else type(config.head).__module__.rpartition(".")[2],
        layers=stack.num_layers,
        width=stack.width,
        context=stack.context_length,
        counts=count(config, length),
        tokenizer=None if chat is None else _tokenizer(chat),
        licence=licence,
        scheme=scheme,
        tensors=tensors,
    )


def _tokenizer(chat: ChatFormat) -> TokenizerFacts:
    tokenizer = chat.tokenizer
    return TokenizerFacts(
        kind=type(tokenizer.backend.model).__name__,
        vocabulary_size=tokenizer.vocabulary_size,
        special_tokens=tuple(sorted(tokenizer.special_ids, key=lambda name: tokenizer.special_ids[name])),
        end_tokens=tokenizer.end_tokens,
        has_chat_template=chat.source is not None,
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def _gguf(path: Path, changes: Mapping[str, Any], length: int | None) -> ModelFacts:
    file = GGUFFile(path)
    architecture, theirs = read_gguf_config(file)
    if changes:
        return inspect_config({**theirs, **changes}, length, source=str(path))
    return _facts(
        architecture,
        core_config(architecture, theirs),
        length,
        source=str(path),
        chat=ChatFormat(tokenizer_from_gguf(file.metadata), file.metadata.get("tokenizer.chat_template")),
        licence=licence_from_gguf(file.metadata).title,
        tensors=tuple(
            TensorFacts(name=name, shape=file.shape(name), dtype=file.form(name), size_bytes=file.size_bytes(name))
            for name in sorted(file.names(), key=_in_order)
        ),
    )


def _stored(folder: Path) -> tuple[TensorFacts, ...]:
    files = TensorFiles.of_folder(folder)
    return tuple(
        TensorFacts(name=name, shape=files.shape(name), dtype=files.dtype(name), size_bytes=files.size_bytes(name))
        for name in sorted(files.names(), key=_in_order)
    )


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
