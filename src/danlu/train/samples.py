"""A few texts that a language model writes while it learns: at every validation, the likeliest token each time.

For the eye only: they change nothing of a run. No random number is drawn, and the network is used as a validation uses
it. What they cost is bounded by ``samples`` times ``sample_tokens``. Knows no task; a stage says what its rows ask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from danlu.core.errors import ConfigError
from danlu.core.records import GenerateOptions
from danlu.models.generate import generate, prompt_ids
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.text.chat import RenderedChat
from danlu.train.curve import CurveLog
from danlu.train.settings import Job, RunConfig

_SHOWN = 90
"""Characters of a text in a line for the person."""
_BEGUN = 12
"""Tokens of a row that is all to be learnt which are given to begin with."""


@dataclass(frozen=True, kw_only=True)
class SampledConfig(RunConfig):
    """Training of a model that writes."""

    samples: int = 2
    """Texts written at each validation, for the terminal and the report; 0 for none."""
    sample_prompts: tuple[str, ...] = ()
    """What they answer, instead of the first validation rows."""
    sample_tokens: int = 32
    """Most tokens of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 0:
            raise ConfigError(f"samples is {self.samples}.", "Use 0 for none, or a few.")
        if self.sample_tokens < 1:
            raise ConfigError(f"sample_tokens is {self.sample_tokens}.", "Use 1 or more.")
        if not all(self.sample_prompts):
            raise ConfigError("sample_prompts has an empty text.", "Give texts, or leave it out.")


@dataclass(frozen=True)
class Ask:
    """What a model is asked, and what a good answer is, where one is known."""

    ids: Sequence[int]
    wanted: str = ""


class Samples:
    """Writes for the same prompts each time."""

    def __init__(
        self, model: Model, config: SampledConfig, rows: Iterable[Ask], *, is_plain: bool = False, prefix: str = ""
    ) -> None:
        """``rows`` are asked where the config has no prompts; those that leave no room to answer are passed over.

        The config's prompts are messages where the model has a template, unless ``is_plain``; ``prefix`` stands before
        each. Raises ConfigError for one that is too long.
        """
        self._model = model
        self._options = GenerateOptions(max_tokens=config.sample_tokens, seed=0)
        self._asks: list[Ask] = []
        if not config.samples or not model.has_tokenizer:
            return
        most = _room(model)
        if not config.sample_prompts:
            self._asks = list(itertools.islice((row for row in rows if 0 < len(row.ids) < most), config.samples))
        for text in config.sample_prompts:
            is_chat = model.chat.source is not None and not isinstance(model.network, EncoderDecoder)
            asked = prefix + text if is_plain or not is_chat else [{"role": "user", "content": prefix + text}]
            ids = prompt_ids(model, asked)  # pyright: ignore[reportArgumentType]
            if len(ids) >= most:
                raise ConfigError(
                    f"sample_prompts has a text of {len(ids)} tokens; the model reads {most}.", "Give a shorter one."
                )
            self._asks.append(Ask(ids))

    def write(self, step: int, curve: CurveLog, job: Job) -> None:
        """One text for each prompt, told and put on the curve. With several processes the first one writes alone."""
        if not self._asks or not job.world.is_first:
            return
        tokenizer = self._model.chat.tokenizer
        answers = generate(self._model, [ask.ids for ask in self._asks], self._options)
        for ask, answer in zip(self._asks, answers, strict=True):
            prompt, text = tokenizer.decode(ask.ids), answer.text
            curve.add({"step": step, "prompt": prompt, "sample": text, "wanted": ask.wanted})
            job.events.say(f"  step {step}: {_line(prompt, is_end=True)} → {_line(text)}")


def asks_of_chats(model: Model, rows: Iterable[RenderedChat]) -> Iterator[Ask]:
    """What encoded conversations ask before their first answer; of a row that is all to be learnt, its first tokens."""
    for row in rows:
        begin = row.is_answer.index(True) if True in row.is_answer else len(row.ids)
        begin = begin or min(_BEGUN, len(row.ids) // 2)
        end = next((i for i in range(begin, len(row.ids)) if not row.is_answer[i]), len(row.ids))
        yield Ask(row.ids[:begin], model.chat.tokenizer.decode(row.ids[begin:end]))


def _room(model: Model) -> int:
    """A prompt must have fewer tokens."""
    network = model.network
    tower = network.encoder.stack.config if isinstance(network, EncoderDecoder) else model.config
    return tower.context_length


def _line(text: str, *, is_end: bool = False) -> str:
    """A text in one short line: its beginning, or its end."""
    text = " ".join(text.split())
    if len(text) <= _SHOWN:
        return text or "(nothing)"
    return f"…{text[-_SHOWN // 2 :]}" if is_end else f"{text[:_SHOWN]}…"
