"""What a model says about its own generation: where answers begin and end, and the settings its makers chose.

Knows no files: it is made of config.json and generation_config.json as dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from danlu.core.errors import ModelError
from danlu.core.records import GenerateOptions

_OPTIONS = {
    "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size", "num_beams": "num_beams", "length_penalty": "length_penalty",
    "early_stopping": "early_stopping", "num_return_sequences": "n", "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens", "penalty_alpha": "penalty_alpha", "prompt_lookup_num_tokens": "lookup_tokens",
}  # fmt: skip
"""Their settings → ours, same meaning."""
_READ_HERE = {
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "do_sample", "temperature", "max_length", "min_length",
    "force_bos_token_to_be_generated",
}  # fmt: skip
_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "diversity_penalty": (0.0,),
    "num_beam_groups": (1,), "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,),
    "begin_suppress_tokens": ([],), "exponential_decay_length_penalty": (), "sequence_bias": (),
    "guidance_scale": (1.0,),
    "force_words_ids": (), "constraints": (), "renormalize_logits": (False,), "forced_decoder_ids": (),
}  # fmt: skip
"""Settings that we do not have, and the values at which they do nothing."""

GENERATION_KEYS = frozenset({*_OPTIONS, *_READ_HERE, *_NOT_HONOURED, "remove_invalid_values"})
"""Keys that old checkpoints keep in config.json and newer ones in generation_config.json."""


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Begin and end of answers, and the makers' settings."""

    end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer."""
    start_id: int | None = None
    """The token before an encoder-decoder's answer."""
    first_ids: tuple[int, ...] = ()
    """An encoder-decoder's answer begins with one of these; empty for any."""
    last_ids: tuple[int, ...] = ()
    """An answer that reaches its limit ends with one of these; empty for any."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are never written."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything as the model has it, in the keys of generation_config.json."""

    @classmethod
    def read(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> GenerationDefaults:  # fmt: skip
        """From config.json and, where there is one, generation_config.json, which has the last word."""
        old = {key: config[key] for key in GENERATION_KEYS & config.keys() if config[key] is not None}
        new = {key: value for key, value in (generation or {}).items() if value is not None}
        settings = {**old, **new}
        start = settings.get("decoder_start_token_id", settings.get("bos_token_id"))
        first = settings.get("forced_bos_token_id")
        if first is None and settings.get("force_bos_token_to_be_generated"):  # BART's configs of 2020
            first = settings.get("bos_token_id")
        words = settings.get("bad_words_ids", [])
        suppressed = [[index] for index in _ids(settings.get("suppress_tokens"))]
        return cls(
            end_ids=frozenset(_ids(settings.get("eos_token_id"))),
            start_id=start if isinstance(start, int) else None,
            first_ids=_ids(first),
            last_ids=_ids(settings.get("forced_eos_token_id")),
            banned=tuple(_ids(word) for word in [*(words if isinstance(words, list) else [words]), *suppressed]),
            settings=settings,
        )

    def with_end_ids(self, end_ids: frozenset[int]) -> GenerationDefaults:
        """The same, these tokens ending answers too."""
        return replace(self, end_ids=self.end_ids | end_ids)

    def options(self, *, prompt_tokens: int = 0, **changes: Any) -> GenerateOptions:
        """The makers' settings, ``changes`` first. ``prompt_tokens`` are what max_length counts before the answer: the
        prompt of a decoder, the start token of an encoder-decoder.

        Raises ModelError for a setting that danlu does not have.
        """
        for key, idle in _NOT_HONOURED.items():
            value = self.settings.get(key)
            if value is not None and value not in idle:
                raise ModelError(
                    f"The model's generation_config.json sets {key} to {value!r}, which is not supported.",
                    "Give GenerateOptions of your own.",
                )
        found = {ours: self.settings[theirs] for theirs, ours in _OPTIONS.items() if theirs in self.settings}
        if self.settings.get("do_sample", False):
            found["temperature"] = self.settings.get("temperature", 1.0)
        else:
            found = {key: value for key, value in found.items() if key not in ("top_p", "min_p", "top_k")}
            if "penalty_alpha" in found:
                found["top_k"] = self.settings.get("top_k", 50)
        if "max_tokens" not in found and "max_length" in self.settings:
            found["max_tokens"] = max(1, self.settings["max_length"] - prompt_tokens)
        if "min_tokens" not in found and "min_length" in self.settings:
            found["min_tokens"] = max(0, self.settings["min_length"] - prompt_tokens)
        if "min_tokens" not in changes and "min_tokens" in found:
            most = changes.get("max_tokens", found.get("max_tokens", GenerateOptions.max_tokens))
            found["min_tokens"] = min(found["min_tokens"], most)
        return GenerateOptions(**{**found, **changes})


def _ids(value: Any) -> tuple[int, ...]:
    """A token id, or a list of them."""
    if value is None:
        return ()
    listed = value if isinstance(value, (list, tuple)) else [value]
    if not all(type(index) is int for index in listed):
        raise ModelError(f"The model's generation_config.json has the token ids {value!r}.", "They must be numbers.")
    return tuple(listed)
