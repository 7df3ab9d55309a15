"""Reads a config.json key by key, so that what no one asked for can be refused: nothing is ignored silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.core.errors import ModelError, nearest
from danlu.models.defaults import GENERATION_KEYS

# Keys that do not change what a model computes, or that other parts of danlu read.
_HARMLESS = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "gradient_checkpointing", "id2label", "label2id",
    "num_labels", "problem_type", "task_specific_params", "tokenizer_class", "return_dict", "output_attentions",
    "output_hidden_states", "return_dict_in_generate", "is_encoder_decoder", "transformers.js_config",
    "finetuning_task", "_attn_implementation", "torchscript", "_num_labels", "initializer_factor", "unk_token_id",
    "sep_token_id", "is_llama_config", "use_bfloat16", "chunk_size_feed_forward", "cls_token_id", "mask_token_id",
} | GENERATION_KEYS  # fmt: skip

_MOST = {"layer": 10_000, "expert": 100_000, "label": 10_000_000}
"""Most of what is made one by one, by a word of the key: a hostile number must not run for ever."""
_LARGEST = 2**31


class Keys:
    """One config.json; every key has to be asked for before ``done``."""

    def __init__(self, theirs: Mapping[str, Any], where: str = "config.json") -> None:
        self._theirs = theirs
        self._where = where
        self._seen: set[str] = set()

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; needed when there is no default."""
        value = self._take(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"{self._where}: {key} is {value!r}.", "It must be a whole number.")
        most = next((most for word, most in _MOST.items() if word in key), _LARGEST)
        if abs(value) > most:
            raise ModelError(f"{self._where}: {key} is {value:.4g}.", f"At most {most:,} are taken seriously.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; needed when there is no default."""
        value = self._take(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ModelError(f"{self._where}: {key} is {value!r}.", "It must be a number.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self._where}: {key} is {value!r}.", "It must be true or false.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A word; needed when there is no default."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self._where}: {key} is {value!r}.", "It must be a text.")
        return value

    def choice(self, key: str, known: Mapping[str, Any], default: str | None = None) -> Any:
        """One of ``known``, as what it stands for."""
        value = self.text(key, default)
        if value not in known:
            raise ModelError(f"{self._where}: {key} is {value!r}.", nearest(value, known))
        return known[value]

    def get(self, key: str, default: Any = None) -> Any:
        """Whatever stands there, null counted as absent."""
        self._seen.add(key)
        value = self._theirs.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Whether the key is there and not null; a null needs no further reading."""
        if self._theirs.get(key) is None:
            self._seen.add(key)
        return self._theirs.get(key) is not None

    def fixed(self, **values: Any) -> None:
        """Keys of which only one value is honoured; absent and null count as that value."""
        for key, value in values.items():
            if self.get(key, value) != value:
                raise ModelError(
                    f"{self._where}: {key} is {self._theirs[key]!r}.", f"Only {value!r} is supported so far."
                )

    def harmless(self, *keys: str) -> None:
        """Keys of this family that change nothing we compute."""
        self._seen.update(keys)

    def done(self) -> None:
        """Every key was asked for; an unknown one is a ModelError."""
        for key in self._theirs:
            if key not in self._seen and key not in _HARMLESS:
                raise ModelError(f"{self._where} has an unknown key '{key}'.", nearest(key, self._seen))

    def head(self, default: str) -> str:
        """What comes after the family's name in ``architectures``: "ForCausalLM", "Model", …"""
        named = self._theirs.get("architectures") or []
        for suffix in HEADS:
            if named and named[0].endswith(suffix):
                return suffix
        if not named:
            return default
        raise ModelError(f"{self._where}: architectures is {named!r}.", f"Known endings: {', '.join(HEADS)}.")

    def labels(self) -> tuple[str, ...]:
        """Names of the classes of a classification head."""
        names = self._theirs.get("id2label")
        if isinstance(names, Mapping):
            ordered = sorted(((int(index), str(name)) for index, name in names.items()))
            if [index for index, _ in ordered] != list(range(len(ordered))):
                raise ModelError(f"{self._where}: id2label has the ids {sorted(names)}.", "They must be 0, 1, 2, …")
            return tuple(name for _, name in ordered)
        return tuple(f"LABEL_{index}" for index in range(self.integer("num_labels", 2)))

    def has_independent_labels(self, labels: Sequence[str]) -> bool:
        """Whether a classifier's labels are sigmoids: the config says so, or there is only one."""
        return self.get("problem_type") == "multi_label_classification" or len(labels) == 1

    def _take(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ModelError(f"{self._where} lacks '{key}'.", "Copy the model's whole config.json.")
        return value


HEADS = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForSequenceClassification",
    "ForTokenClassification", "ForImageClassification", "MTModel", "EncoderModel", "Model",
)  # fmt: skip

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "relu6": "relu6", "tanh": "tanh",
}  # fmt: skip
"""Their names of activations → ours."""
