"""What a load test sends: prompts of exact length drawn from common words, or the rows of a file.

Lengths are counted by the server's own /tokenize, where it has one. Knows nothing of arrivals, answers or times.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Message

CountTokens = Callable[[str], Awaitable[int]]
"""Number of tokens of a text, as the server counts."""

_COMMON = (
    "the a time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point home water "
    "room mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city name team minute idea body back parent face "
    "level office door health person art war history party result change morning reason research girl guy moment air "
    "teacher force education find give tell ask seem feel try leave call good new first last long great little own "
    "other old big high small large next early young important few public bad same able under about into over after "
    "before "
)
WORDS = _COMMON.split()
"""What prompts are drawn from."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What is asked, and how long the answers are."""

    file: Path | None = None
    """Rows to ask instead of drawn words: JSON lines with prompt, messages, text, input or conversations (ShareGPT),
    and output_tokens or not; read in order, again from the start when there are too few."""
    input_tokens: int = 128
    """Tokens of a drawn prompt."""
    output_tokens: int = 128
    """Most tokens of an answer."""
    spread: float = 0.0
    """Lengths are drawn evenly between this share below and above; 0 makes all of them equal."""
    prefix_tokens: int = 0
    """Tokens that drawn prompts begin with in common, beside their own."""
    num_prefixes: int = 1
    """Different common beginnings; prompts take turns."""
    turns: int = 1
    """Questions in each conversation; every one is sent with all that was said before."""
    batch: int = 1
    """Texts in one embeddings request."""

    def __post_init__(self) -> None:
        for name, least in (
            ("input_tokens", 1), ("output_tokens", 1), ("prefix_tokens", 0), ("num_prefixes", 1), ("turns", 1),
            ("batch", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"Use {least} or more.")
        if not 0.0 <= self.spread < 1.0:
            raise ConfigError(f"spread is {self.spread}.", "Use 0 (equal lengths) to less than 1.")
        if self.file is not None and (self.prefix_tokens or self.turns > 1):
            raise ConfigError("A file is given with prefix_tokens or turns.", "Those are for drawn prompts.")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, or a conversation of several."""

    prompt: str | tuple[Message, ...]
    """What is asked first."""
    follow_ups: tuple[str, ...] = ()
    """What is asked after each answer."""
    more_texts: tuple[str, ...] = ()
    """Further texts of the same embeddings request."""
    output_tokens: int
    """Most tokens of each answer."""


async def draw_jobs(config: PromptConfig, num_jobs: int, count: CountTokens | None, seed: str) -> list[Job]:
    """``num_jobs`` jobs, the same ones for the same seed. Without ``count`` a word counts as a token."""
    if config.file is not None:
        rounds = itertools.cycle(read_rows(config.file, config.output_tokens))
        return [_joined([next(rounds) for _ in range(config.batch)]) for _ in range(num_jobs)]
    draw = random.Random(seed)

    async def text(num_tokens: int) -> str:
        return await draw_text(num_tokens, count, draw)

    def near(length: int) -> int:
        return max(1, round(length * draw.uniform(1.0 - config.spread, 1.0 + config.spread)))

    num_prefixes = config.num_prefixes if config.prefix_tokens else 0
    prefixes = [await text(config.prefix_tokens) + " " for _ in range(num_prefixes)]
    jobs: list[Job] = []
    for number in range(num_jobs):
        prefix = prefixes[number % len(prefixes)] if prefixes else ""
        texts = [await text(near(config.input_tokens)) for _ in range(config.turns * config.batch)]
        jobs.append(
            Job(
                prompt=prefix + texts[0], output_tokens=near(config.output_tokens),
                follow_ups=tuple(texts[1 : config.turns]), more_texts=tuple(texts[config.turns :]),
            )
        )  # fmt: skip
    return jobs


def _joined(jobs: Sequence[Job]) -> Job:
    """Rows of one embeddings request as one job."""
    return replace(jobs[0], more_texts=tuple(str(job.prompt) for job in jobs[1:]))


async def draw_text(num_tokens: int, count: CountTokens | None, draw: random.Random) -> str:
    """Random words that make exactly ``num_tokens`` tokens, or as near as the tokenizer allows."""
    words = draw.choices(WORDS, k=num_tokens)
    if count is None:
        return " ".join(words)
    for _ in range(20):
        surplus = await count(" ".join(words)) - num_tokens
        if not surplus or (surplus > 0 and len(words) == 1):
            break
        if surplus > 0:
            del words[max(1, len(words) - surplus) :]
        else:
            words += draw.choices(WORDS, k=-surplus)
    return " ".join(words)


class _Turn(msgspec.Struct):
    value: str = ""


class _Row(msgspec.Struct):
    prompt: str | None = None
    text: str | None = None
    input: str | None = None
    messages: list[Message] | None = None
    conversations: list[_Turn] | None = None
    output_tokens: int | None = None


def read_rows(path: Path, output_tokens: int) -> list[Job]:
    """The rows of a file as jobs; raises DataError naming the line that is none."""
    try:
        jobs = [_to_job(path, number, line, output_tokens) for number, line in _lines(path)]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from error
    if not jobs:
        raise DataError(f"{path} has no rows.", "Put one JSON object on each line.")
    return jobs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as handle:
        yield from ((number, line) for number, line in enumerate(handle, start=1) if line.strip())


def _to_job(path: Path, number: int, line: bytes, output_tokens: int) -> Job:
    try:
        row = msgspec.json.decode(line, type=_Row)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path}, line {number}: {error}.", "Use JSON objects with prompt, messages or text, one on each line."
        ) from error
    if row.messages:
        prompt: str | tuple[Message, ...] | None = tuple(row.messages)
    elif row.conversations:
        prompt = row.conversations[0].value
    else:
        prompt = row.prompt or row.text or row.input
    if not prompt:
        raise DataError(f"{path}, line {number} asks nothing.", "Give prompt, messages, text, input or conversations.")
    return Job(prompt=prompt, output_tokens=row.output_tokens or output_tokens)
