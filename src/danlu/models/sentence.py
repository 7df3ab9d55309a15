"""Sentence models: folders that say how an encoder's hidden states become one vector a text.

Laid out as sentence-transformers does: modules.json lists an encoder, a pooling (1_Pooling/config.json) and perhaps a
normalisation (2_Normalize); sentence_bert_config.json and config_sentence_transformers.json say how texts are read
(Reimers & Gurevych 2019). Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.errors import ModelError
from danlu.core.files import read_json, read_json_object, write_json
from danlu.models.heads.embed import EmbedConfig
from danlu.models.pooling import Pooling

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_OTHER_POOLINGS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
_SHORT_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
"""What newer files say in one key."""
_READING = "sentence_bert_config.json"
"""Where limits of texts stand; older models of other families have their own name in it."""
_MODULES = "sentence_transformers.models"


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """How a sentence model reads texts and pools what it read."""

    pooling: Pooling = "mean"
    """Which tokens are read."""
    normalise: bool = False
    """Whether vectors have length 1."""
    max_tokens: int | None = None
    """Longer texts lose what comes after this many tokens, special ones counted; None for the encoder's context."""
    lower_case: bool = False
    """Whether texts are made lower case first."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What is put before texts, by the name of what they are ("query", "passage")."""
    default_prompt: str | None = None
    """Name of the prompt that is put before texts when none is asked for."""

    @property
    def head(self) -> EmbedConfig:
        """The head of the encoder."""
        return EmbedConfig(pooling=self.pooling, normalise=self.normalise)

    def prompt(self, name: str | None) -> str:
        """What is put before texts; raises ModelError for a name that the model does not have."""
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ModelError(f"The model has no prompt {name!r}.", f"Known: {known}.")
        return self.prompts[name]


def read_sentence(folder: Path) -> SentenceConfig | None:
    """What a folder says of sentences; None when it is no sentence model. Raises ModelError on what is not honoured."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    paths = _modules(path)
    reading = next(iter(sorted(folder.glob("sentence_*_config.json"))), folder / _READING)
    texts = _read(reading)
    _only(reading, texts, {"max_seq_length", "do_lower_case"})
    prompts = _read(folder / "config_sentence_transformers.json")
    pooling, skips_prompt = _pooling(folder / Path(paths["Pooling"]).name / "config.json")
    default = prompts.get("default_prompt_name")
    named = {name: prompt for name, prompt in (prompts.get("prompts") or {}).items() if prompt or name == default}
    if skips_prompt and named:
        raise ModelError(f"{folder}: include_prompt is false.", "Only models that pool their prompts are supported.")
    return SentenceConfig(
        pooling=pooling,
        normalise="Normalize" in paths,
        max_tokens=texts.get("max_seq_length"),
        lower_case=bool(texts.get("do_lower_case")),
        prompts=named,
        default_prompt=default,
    )


def _modules(path: Path) -> dict[str, str]:
    """Kind of module → its folder, in the one order that is supported."""
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in listed):
        raise ModelError(f"{path} is no list of modules with type and path.", "Copy the model's own.")
    found = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in listed}
    if tuple(found) not in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")):
        raise ModelError(
            f"{path} lists {', '.join(found)}.", "Only Transformer, Pooling and then perhaps Normalize are supported."
        )
    if found["Transformer"]:
        raise ModelError(
            f"{path} keeps the encoder in {found['Transformer']!r}.", "Move its files beside modules.json."
        )
    return found


def _pooling(path: Path) -> tuple[Pooling, bool]:
    """The pooling, and whether prompts are left out of it."""
    theirs = _read(path)
    short = theirs.get("pooling_mode")
    if short is not None:
        theirs = {**theirs, f"pooling_mode_{_SHORT_POOLINGS.get(str(short), short)}": True}
    chosen = [name for name, value in theirs.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise ModelError(
            f"{path}: pooling is {', '.join(chosen) or 'not given'}.", f"Supported is one of {', '.join(_POOLINGS)}."
        )
    return _POOLINGS[chosen[0]], theirs.get("include_prompt") is False


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _only(path: Path, theirs: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(theirs.keys() - known):
        raise ModelError(f"{path} has an unknown key {unknown[0]!r}.", f"Known: {', '.join(sorted(known))}.")


def write_sentence(config: SentenceConfig, width: int, folder: Path) -> None:
    """Write what ``read_sentence`` reads, as sentence-transformers does; ``width`` is the vectors' size."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if config.normalise else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    modes = {name: pooling == config.pooling for name, pooling in _POOLINGS.items()}
    modes |= dict.fromkeys(_OTHER_POOLINGS, False)
    write_json(folder / paths[1] / "config.json", {"word_embedding_dimension": width, **modes, "include_prompt": True})
    texts = {"max_seq_length": config.max_tokens, "do_lower_case": config.lower_case}
    write_json(folder / _READING, texts)
    prompts = {"prompts": dict(config.prompts), "default_prompt_name": config.default_prompt}
    write_json(folder / "config_sentence_transformers.json", prompts)
