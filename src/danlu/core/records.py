"""The few nouns that cross every border, and the one protocol all language models answer to.

Three things implement ``LanguageModel``: the reference sampler (models/generate), the engine (serve/engine) and the
HTTP client (client). They pass one contract test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict, runtime_checkable

from danlu.core.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]


class Message(TypedDict):
    """One turn of a conversation, in OpenAI's form."""

    role: Role
    content: str


Prompt = str | Sequence[Message]
"""Raw text, continued as it is; or a conversation, rendered by the model's own chat template."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to continue a prompt. Temperature 0 is greedy."""

    max_tokens: int = 128
    """Most tokens to generate (the prompt is not counted)."""
    temperature: float = 0.0
    """0 picks the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this total probability."""
    top_k: int = 0
    """Sample only from this many likeliest tokens; 0 means all."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh seed."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}.", "Use 1 or more.", param="max_tokens")
        if not 0.0 <= self.temperature <= 2.0:
            raise RequestError(f"temperature is {self.temperature}.", "Use 0 to 2.", param="temperature")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p is {self.top_p}.", "Use more than 0, at most 1.", param="top_p")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}.", "Use 0 (all) or more.", param="top_k")
        if len(self.stop) > 4 or any(not s or len(s) > 256 for s in self.stop):
            raise RequestError(
                f"stop has {len(self.stop)} texts.", "Use at most 4, each of 1 to 256 characters.", param="stop"
            )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens read and written by one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of an answer being written. The last one carries ``finish_reason`` and ``usage``."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a model finds a text after a prompt: natural-log probability summed over its tokens."""

    logprob: float
    num_tokens: int
    is_greedy: bool
    """Whether greedy decoding would have written exactly this text."""
    token_logprobs: tuple[float, ...] = field(default=(), repr=False)


OnAdvance = Callable[[int], None]
"""Called with the number of items just finished."""


@runtime_checkable
class LanguageModel(Protocol):
    """Anything that continues text. Raises ``RequestError`` when a prompt cannot be answered."""

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        """Answers in the order of ``prompts``."""
        ...

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; joined texts equal ``generate``'s text."""
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
        ...
