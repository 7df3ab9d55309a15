"""A model on disk: its family, its config, its tokenizer, and its weights by name, none of them read yet.

A folder is laid out as Hugging Face does: config.json, model.safetensors (or shards), tokenizer.json,
tokenizer_config.json with the chat template; danlu.json beside them says what config.json cannot (quantisation). A GGUF
file says the same in its metadata. Nothing is ever unpickled, and no code is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from danlu.core import plugins
from danlu.core.errors import ModelError, nearest
from danlu.core.files import read_json, read_json_object, utf8_lines
from danlu.models.archs import GGUF_FACTORS, Architecture
from danlu.models.gguf import GGUFFile
from danlu.models.licence import Licence, licence_from_gguf, read_licence
from danlu.models.network import ModelConfig
from danlu.models.sentence import SentenceConfig, read_sentence
from danlu.models.tensors import TensorFiles
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import load_tokenizer, tokenizer_from_gguf

UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What values of the wrong kind end in."""


class Tensors(Protocol):
    """Named tensors, read when asked for."""

    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: what its files say, its weights not read."""

    path: Path
    """The folder or file."""
    architecture: Architecture
    """Its family."""
    theirs: Mapping[str, Any]
    """Its config.json, or what GGUF metadata say as one."""
    config: ModelConfig
    """The same as numbers of the core."""
    tensors: Tensors
    """Its weights, read when asked for."""
    chat: ChatFormat | None
    """Its tokenizer and template."""
    scheme: str | None = None
    """How its weights are quantised as danlu does it."""
    sentence: SentenceConfig | None = None
    """How texts become vectors, when it is a sentence model."""
    licence: Licence = field(default_factory=Licence)
    """Under what terms it may be used."""


def open_checkpoint(path: Path, *, with_tokenizer: bool = True) -> Checkpoint:
    """A folder or a .gguf file; raises ModelError when it is neither, or not a model of a known family."""
    if path.is_dir():
        return _open_folder(path, with_tokenizer)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path, with_tokenizer)
    if not path.exists():
        raise ModelError(f"There is no model at {path}.", "Give a model folder, a .gguf file or an alias.")
    raise ModelError(f"{path} is neither a model folder nor a .gguf file.", "Give one of these.")


def read_config(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The family and the config.json of a model folder."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder} has no config.json.", "A model folder has config.json and *.safetensors.")
    theirs = read_json(config_path)
    if not isinstance(theirs, dict):
        raise ModelError(f"{config_path} is not an object.", "Copy the model's own config.json.")
    return find_architecture(str(theirs.get("model_type", "(none)"))), theirs


def read_scheme(folder: Path) -> str | None:
    """How the weights of a folder are quantised, as its danlu.json says; None for plain weights."""
    path = folder / "danlu.json"
    notes = read_json(path) if path.is_file() else {}
    if not isinstance(notes, dict) or not isinstance(notes.get("quantization", {}), dict):
        raise ModelError(f"{path} is not as danlu writes it.", "Remove it if the weights are plain.")
    scheme = notes.get("quantization", {}).get("scheme")
    if scheme not in (None, "int8"):
        raise ModelError(f"{folder}: quantisation scheme {scheme!r} is unknown.", "Known: int8.")
    return scheme


_CLASSES = {"gpt2": "GPT2LMHeadModel", "gemma3_text": "Gemma3ForCausalLM"}
"""What transformers calls models of these families; all other names are the family's and ForCausalLM."""


def read_gguf_config(file: GGUFFile) -> tuple[Architecture, dict[str, Any]]:
    """The family of a GGUF file and its metadata as a config.json."""
    architecture = _gguf_architecture(str(file.metadata.get("general.architecture", "(none)")))
    factors = {name: file.read(name) for name in GGUF_FACTORS if name in file.names()}
    theirs = architecture.config_from_gguf(file.metadata, factors)
    theirs["tie_word_embeddings"] = "output.weight" not in file.names()
    family = architecture.model_type
    plain = f"{family.title().replace('_', '')}ForCausalLM"
    theirs["architectures"] = [_CLASSES.get(family, plain)]
    return architecture, theirs


def _open_folder(folder: Path, with_tokenizer: bool) -> Checkpoint:
    architecture, theirs = read_config(folder)
    scheme = read_scheme(folder)
    files = TensorFiles.of_folder(folder)
    config = architecture.fit(core_config(architecture, theirs), files.names())
    sentence = read_sentence(folder)
    if sentence is not None:
        config = replace(config, head=sentence.head)
    chat = read_chat(folder) if with_tokenizer else None
    return Checkpoint(folder, architecture, theirs, config, files, chat, scheme, sentence, read_licence(folder))


def read_generation(path: Path) -> dict[str, Any]:
    """The generation_config.json of a model folder; empty when there is none."""
    file = path / "generation_config.json"
    return read_json_object(file) if file.is_file() else {}


def read_chat(folder: Path) -> ChatFormat | None:
    """Tokenizer and chat template of a model folder; None when it has no tokenizer."""
    path = folder / "tokenizer_config.json"
    config = read_json_object(path) if path.is_file() else {}
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return ChatFormat(load_tokenizer(folder, config), _template(folder, config.get("chat_template")))


def _template(folder: Path, named: Any) -> str | None:
    """A file of its own, else what tokenizer_config.json says: one template, or several of which one is the default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return "".join(utf8_lines(path))
    if isinstance(named, list) and all(isinstance(one, dict) for one in named):
        named = {one.get("name"): one.get("template") for one in named}.get("default")
    if named is not None and not isinstance(named, str):
        raise ModelError(
            f"{folder}: chat_template is neither a text nor a list with a default.", "Copy the model's own."
        )
    return named


_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json",
    "source.spm",
)  # fmt: skip


def _open_gguf(path: Path, with_tokenizer: bool) -> Checkpoint:
    file = GGUFFile(path)
    architecture, theirs = read_gguf_config(file)
    config = core_config(architecture, theirs)
    chat = None
    if with_tokenizer:
        chat = ChatFormat(tokenizer_from_gguf(file.metadata), file.metadata.get("tokenizer.chat_template"))
    tensors, licence = GGUFTensors(file, architecture, config), licence_from_gguf(file.metadata)
    return Checkpoint(path, architecture, theirs, config, tensors, chat, licence=licence)


class GGUFTensors:
    """The tensors of a GGUF file under the names and in the layout of the family's checkpoints."""

    def __init__(self, file: GGUFFile, architecture: Architecture, config: ModelConfig) -> None:
        self._file = file
        self._architecture = architecture
        self._config = config
        theirs = {name for source in architecture.weights(config).values() for name in source.names}
        known = {name: architecture.gguf_name(name) for name in theirs}
        rest = file.names() - set(GGUF_FACTORS) - set(known.values())
        stored = {name: stored for name, stored in known.items() if stored in file.names()}
        self._names = stored | {name: name for name in rest}

    def names(self) -> set[str]:
        """Names as in a checkpoint."""
        return set(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """As a checkpoint has it."""
        stored = torch.empty(self._file.shape(self._names[name]), device="meta")
        return tuple(self._architecture.weight_from_gguf(name, stored, self._config).shape)

    def read(self, name: str) -> Tensor:
        """fp32, turned as a checkpoint has it."""
        return self._architecture.weight_from_gguf(name, self._file.read(self._names[name]), self._config)


def find_architecture(model_type: str) -> Architecture:
    """The family of this ``model_type``."""
    known = plugins.names("models.archs")
    name = model_type.replace("-", "_")
    if name not in known:
        raise ModelError(f"Model family '{model_type}' is not supported.", nearest(name, known))
    return plugins.load("models.archs", name)


def _gguf_architecture(name: str) -> Architecture:
    """The family whose files say ``general.architecture`` = ``name``. Nearly all are called so themselves (and
    Mistral's files say llama); the others are asked one by one."""
    families = plugins.names("models.archs")
    if name in families:
        return find_architecture(name)
    known = {plugins.load("models.archs", family).gguf: family for family in families}
    if name not in known:
        raise ModelError(
            f"GGUF files of the family '{name}' are not supported.", nearest(name, [n for n in known if n])
        )
    return find_architecture(known[name])


def core_config(architecture: Architecture, theirs: Mapping[str, Any]) -> ModelConfig:
    """What a family makes of a config.json; whatever cannot be read is a ModelError."""
    try:
        return architecture.read_config(theirs)
    except UNREADABLE as error:
        raise ModelError(
            f"This config.json of the family '{architecture.model_type}' cannot be read: {error!r}.",
            "Copy the model's own config.json.",
        ) from error
