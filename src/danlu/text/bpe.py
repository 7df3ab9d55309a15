"""Trains a byte-level BPE vocabulary for Chinese and English and says how well it does on text it has not seen.

Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; over bytes as in Radford et al. 2019) knows all 256 bytes, so
any text comes back from its ids unchanged. Text is cut first: Latin words keep the space before them, Han runs stand
alone but for a sign in front of them, digits come one by one or in threes. The same input gives the same bytes of
tokenizer.json. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from danlu.core.config import to_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.core.files import write_json
from danlu.text.corpus import LANGUAGES, Language, language_of
from danlu.text.tokenizer import TextTokenizer

CHATML = (
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}\n"
    "{%- if message['role'] == 'assistant' %}\n"
    "{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}\n"
    "{%- else %}{{ message['content'] + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""The chat template written beside a trained vocabulary; its generation tags say what an assistant learns."""

_MOST_REPEATS = 4.0


@dataclass(frozen=True, kw_only=True)
class BPEConfig:
    """How a vocabulary is trained."""

    vocabulary_size: int = 32_000
    """Ids in all: special tokens, 256 bytes, and merges."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    """Ids 0, 1, 2, …; the first fills and separates documents, the last ends an answer."""
    digits: Literal["single", "threes"] = "single"
    """Whether numbers are cut into digits or groups of up to three."""
    min_frequency: int = 2
    """A pair seen less often is not merged."""
    max_token_bytes: int = 24
    """Longest token; longer ones are headers and rulers more than words."""
    max_characters: int = 200_000_000
    """Most characters to train on; documents are thinned out evenly beyond that. 0 means all."""
    chinese_share: float | None = 0.5
    """Share of Chinese in what is trained on; the scarcer language is read up to four times. None: as it comes."""
    held_out: float = 0.02
    """Share of documents kept aside to measure characters per token."""

    def __post_init__(self) -> None:
        smallest = 256 + len(self.special_tokens)
        if not smallest <= self.vocabulary_size <= 1_000_000:
            raise ConfigError(f"vocabulary_size is {self.vocabulary_size}.", f"Use {smallest} to 1000000.")
        if len(set(self.special_tokens)) != len(self.special_tokens) or not all(self.special_tokens):
            raise ConfigError(f"special_tokens are {', '.join(self.special_tokens)}.", "Each once, none empty.")
        if self.min_frequency < 1 or self.max_token_bytes < 1 or self.max_characters < 0:
            raise ConfigError(
                f"min_frequency is {self.min_frequency}, max_token_bytes {self.max_token_bytes}, "
                f"max_characters {self.max_characters}.",
                "Use at least 1, 1 and 0.",
            )
        if self.chinese_share is not None and not 0.0 <= self.chinese_share <= 1.0:
            raise ConfigError(f"chinese_share is {self.chinese_share}.", "Use 0 to 1.")
        if not 0.0 <= self.held_out <= 0.5:
            raise ConfigError(f"held_out is {self.held_out}.", "Use 0 to 0.5.")


@dataclass(frozen=True, kw_only=True)
class Density:
    """How densely a tokenizer writes one language."""

    documents: int = 0
    """Texts measured."""
    characters: int = 0
    """Their Unicode characters."""
    utf8_bytes: int = 0
    """Their bytes."""
    tokens: int = 0
    """Ids they became."""

    @property
    def characters_per_token(self) -> float:
        """The higher, the cheaper; 0 without text."""
        return self.characters / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True)
class TrainedBPE:
    """A trained vocabulary with what was measured."""

    tokenizer: TextTokenizer
    """Ready to use."""
    config: BPEConfig
    """What was asked for."""
    trained_characters: Mapping[str, int]
    """Characters trained on, by language."""
    density: Mapping[str, Density] = field(default_factory=dict[str, Density])
    """On the documents kept aside, by language."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json (with a ChatML template) and tokenizer_report.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        special = self.config.special_tokens
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if special:
            config |= {"eos_token": special[-1], "pad_token": special[0]}
        if {"<|im_start|>", "<|im_end|>"} <= set(special):
            config["chat_template"] = CHATML
        write_json(folder / "tokenizer_config.json", config)
        density = {
            language: {**to_mapping(found), "characters_per_token": round(found.characters_per_token, 4)}
            for language, found in self.density.items()
        }
        report = {"config": to_mapping(self.config), "trained_characters": dict(self.trained_characters)}
        write_json(folder / "tokenizer_report.json", {**report, "held_out": density})


# ---- training ------------------------------------------------------------------------------------------------------


def train_bpe(corpus: Iterable[str], config: BPEConfig | None = None, events: Events | None = None) -> TrainedBPE:
    """Train a vocabulary on ``corpus``, which is read three times (an iterator is kept in memory for that).

    Raises DataError when there is no text, or too little for the vocabulary's size.
    """
    config, events = config or BPEConfig(), events or Events()
    documents = list(corpus) if isinstance(corpus, Iterator) else corpus
    found = _count(documents, config, events)
    if not sum(found.values()):
        raise DataError("There is no text to train on.", "Check the files and the column's name.")
    keep = _keep_shares(found, config)
    backend = _empty(config)
    trained: dict[str, int] = dict.fromkeys(LANGUAGES, 0)
    total = sum(round(found[language] * keep[language]) for language in LANGUAGES)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_frequency,
        special_tokens=[_special(token) for token in config.special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=config.max_token_bytes,
        show_progress=False,
    )
    with events.bar("train tokenizer", total=total, unit="characters") as bar:

        def chosen() -> Iterator[str]:
            for language, text in _thinned(documents, keep, config):
                trained[language] += len(text)
                yield text
                bar.advance(len(text))

        backend.train_from_iterator(chosen(), trainer)
    if backend.get_vocab_size() < config.vocabulary_size:
        raise DataError(
            f"The text gives a vocabulary of {backend.get_vocab_size()}, not {config.vocabulary_size}.",
            "Give more text, a smaller vocabulary_size, or min_frequency=1.",
        )
    special = config.special_tokens
    roles = {"pad_token": special[0]} if special else {}
    tokenizer = TextTokenizer(backend, end_tokens=special[-1:], roles=roles)
    held_out = (text for text in documents if is_held_out(text, config))
    density = measure(tokenizer, held_out, events=events)
    return TrainedBPE(tokenizer=tokenizer, config=config, trained_characters=trained, density=density)


def measure(tokenizer: TextTokenizer, texts: Iterable[str], events: Events | None = None) -> dict[str, Density]:
    """Characters, bytes and tokens of ``texts`` by language; languages that do not occur are left out."""
    found: dict[str, Density] = {}
    with (events or Events()).bar("measure tokenizer", unit="characters") as bar:
        for text in texts:
            if not text:
                continue
            before = found.get(language_of(text), Density())
            found[language_of(text)] = Density(
                documents=before.documents + 1,
                characters=before.characters + len(text),
                utf8_bytes=before.utf8_bytes + len(text.encode()),
                tokens=before.tokens + len(tokenizer.encode(text)),
            )
            bar.advance(len(text))
    return dict(sorted(found.items()))


def pattern(digits: Literal["single", "threes"]) -> str:
    """How text is cut before merging, as a regular expression of the Oniguruma kind.

    Contractions; letters that are not Han, with one sign or space in front; Han runs, with one sign that is no space in
    front; digits; other signs with a space in front and line breaks behind; line breaks; spaces.
    """
    numbers = r"\p{N}" if digits == "single" else r"\p{N}{1,3}"
    other_letter = r"[\p{L}\p{M}&&[^\p{Han}]]"
    return "|".join(
        (
            r"(?i:'(?:s|t|re|ve|m|ll|d))(?!\p{L})",
            rf"[^\r\n\p{{L}}\p{{N}}]?{other_letter}+",
            r"[^\s\p{L}\p{N}]?\p{Han}+",
            numbers,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


def _empty(config: BPEConfig) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(pattern(config.digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def is_held_out(text: str, config: BPEConfig) -> bool:
    """By the text itself, so that copies of one document stay on one side."""
    if not config.held_out:
        return False
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") < config.held_out * 2**32


def _count(documents: Iterable[str], config: BPEConfig, events: Events) -> dict[Language, int]:
    """Characters of each language that may be trained on."""
    found: dict[Language, int] = dict.fromkeys(LANGUAGES, 0)
    with events.bar("read corpus", unit="characters") as bar:
        for text in documents:
            if text and not is_held_out(text, config):
                found[language_of(text)] += len(text)
                bar.advance(len(text))
    return found


def _keep_shares(found: Mapping[Language, int], config: BPEConfig) -> dict[Language, float]:
    """How often to read each language: less than once thins it out, more than once repeats documents."""
    most = config.max_characters or sum(found.values())
    if config.chinese_share is None or not all(found.values()):
        share = min(1.0, most / sum(found.values()))
        return dict.fromkeys(LANGUAGES, share)
    wanted: dict[Language, float] = {"zh": config.chinese_share, "en": 1.0 - config.chinese_share}
    total = min(most, sum(found.values()))
    return {language: min(_MOST_REPEATS, total * wanted[language] / found[language]) for language in LANGUAGES}


def _thinned(
    documents: Iterable[str], keep: Mapping[Language, float], config: BPEConfig
) -> Iterator[tuple[Language, str]]:
    """Documents so often that each language comes as often as wanted, evenly over the corpus."""
    seen: dict[Language, int] = dict.fromkeys(LANGUAGES, 0)
    kept: dict[Language, int] = dict.fromkeys(LANGUAGES, 0)
    for text in documents:
        if not text or is_held_out(text, config):
            continue
        language = language_of(text)
        seen[language] += len(text)
        while kept[language] + len(text) / 2 <= keep[language] * seen[language]:
            kept[language] += len(text)
            yield language, text
