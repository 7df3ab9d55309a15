"""The few nouns that cross every border, and the one protocol all language models answer to.

Three things implement ``LanguageModel``: the reference sampler (models/loaded), the engine (serve/engine) and the
HTTP client (client). They pass one contract test.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired, Protocol, TypedDict, runtime_checkable

from danlu.core.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]


class FunctionCall(TypedDict):
    """The function that a model calls."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(TypedDict):
    """One call of an assistant's turn, in OpenAI's form."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One turn of a conversation, in OpenAI's form."""

    role: Role
    content: str
    """Empty where an assistant only calls functions."""
    name: NotRequired[str]
    """Who speaks, where several have one role; or the function whose result a tool's message is."""
    tool_calls: NotRequired[list[ToolCall]]
    """Functions an assistant calls."""
    tool_call_id: NotRequired[str]
    """The call that a tool's message answers."""
    reasoning_content: NotRequired[str]
    """What an assistant thought before it spoke."""


Prompt = str | Sequence[Message]
"""Raw text, continued as it is; or a conversation, rendered by the model's own chat template."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to continue a prompt. Temperature 0 is greedy; the defaults change nothing the model says."""

    max_tokens: int = 128
    """Most tokens to generate (the prompt is not counted)."""
    min_tokens: int = 0
    """Nothing that ends an answer is written before this many tokens."""
    temperature: float = 0.0
    """0 picks the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this total probability."""
    top_k: int = 0
    """Sample only from this many likeliest tokens; 0 means all."""
    min_p: float = 0.0
    """Sample only from tokens at least this share as probable as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of prompt and answer become less likely (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token the answer already has."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token as often as the answer already has it."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens is written twice; 0 allows it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these token ids; -100 forbids a token."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer; their text is not part of it."""
    ignore_eos: bool = False
    """Whether the model's own end tokens do not end the answer."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh seed."""
    n: int = 1
    """Answers for each prompt: samples, or the best of a beam search."""
    logprobs: int | None = None
    """Tell the log-probability of each token and of this many likeliest ones at its place; None for nothing."""
    num_beams: int = 1
    """Beams of a beam search; 1 for none."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length to this power: above 0 favours long answers."""
    early_stopping: bool | Literal["never"] = False
    """A beam search ends with enough finished beams (True), or when none is likely (False) or able ("never") to win."""
    lookup_tokens: int = 0
    """Guess this many tokens at once from earlier text: the greedy answer, only faster. 0 guesses none."""
    penalty_alpha: float = 0.0
    """Contrastive search among the top_k tokens (Su et al. 2022): how much likeness to before costs; 0 for none."""

    def __post_init__(self) -> None:
        for name, low, high, use in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:  # so that NaN is refused too
                raise RequestError(f"{name} is {value}.", use, param=name)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}.", "Lower it.",
                param="min_tokens",
            )  # fmt: skip
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise RequestError(f"logprobs is {self.logprobs}.", "Use 0 to 20, or none.", param="logprobs")
        wrong = [token for token, value in self.logit_bias.items() if not -100.0 <= value <= 100.0]
        if wrong:
            raise RequestError(
                f"logit_bias of token {wrong[0]} is {self.logit_bias[wrong[0]]}.", "Use -100 to 100.",
                param="logit_bias",
            )  # fmt: skip
        if self.early_stopping not in (True, False, "never"):
            raise RequestError(
                f"early_stopping is {self.early_stopping!r}.", 'Use True, False or "never".', param="early_stopping"
            )
        self._check_stop()
        self._check_method()

    def _check_method(self) -> None:
        """Ways to write that exclude each other."""
        asked = {
            "num_beams": self.num_beams > 1, "lookup_tokens": self.lookup_tokens > 0,
            "penalty_alpha": self.penalty_alpha > 0.0, "temperature": self.temperature > 0.0,
        }  # fmt: skip
        if sum(asked.values()) > 1:
            first, second, *_ = (name for name, is_asked in asked.items() if is_asked)
            raise RequestError(f"{first} and {second} are both given.", "Give one of them.", param=first)
        if self.num_beams > 1 and (self.n > self.num_beams or self.logprobs is not None):
            name = "n" if self.n > self.num_beams else "logprobs"
            raise RequestError(
                f"{name} is {getattr(self, name)} with {self.num_beams} beams.",
                "Use at most as many answers as beams, and no logprobs.", param=name,
            )  # fmt: skip
        if self.penalty_alpha > 0.0 and self.top_k < 2:
            raise RequestError(
                f"penalty_alpha is {self.penalty_alpha} and top_k {self.top_k}.",
                "Contrastive search chooses among top_k tokens: use 2 or more, such as 4.", param="top_k",
            )  # fmt: skip

    def _check_stop(self) -> None:
        if len(self.stop) > 16 or any(not s or len(s) > 256 for s in self.stop):
            raise RequestError(
                f"stop has {len(self.stop)} texts.", "Use at most 16, each of 1 to 256 characters.", param="stop"
            )


_MORE_THAN_0 = sys.float_info.min
_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("max_tokens", 1, math.inf, "Use 1 or more."),
    ("min_tokens", 0, math.inf, "Use 0 or more."),
    ("temperature", 0.0, 2.0, "Use 0 to 2."),
    ("top_p", _MORE_THAN_0, 1.0, "Use more than 0, at most 1."),
    ("top_k", 0, math.inf, "Use 0 (all) or more."),
    ("min_p", 0.0, 1.0, "Use 0 to 1."),
    ("repetition_penalty", _MORE_THAN_0, 100.0, "Use more than 0, at most 100."),
    ("presence_penalty", -2.0, 2.0, "Use -2 to 2."),
    ("frequency_penalty", -2.0, 2.0, "Use -2 to 2."),
    ("no_repeat_ngram_size", 0, math.inf, "Use 0 (none) or more."),
    ("n", 1, 128, "Use 1 to 128."),
    ("num_beams", 1, 64, "Use 1 (none) to 64."),
    ("length_penalty", -10.0, 10.0, "Use -10 to 10."),
    ("lookup_tokens", 0, 64, "Use 0 (none) to 64."),
    ("penalty_alpha", 0.0, 1.0, "Use 0 (none) to 1."),
)
"""Field, least, most, and what to do about a value outside."""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely the model found one token of an answer, before penalties and temperature: natural logarithms."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest token ids at this place with theirs, best first."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens read and written by one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the prefix cache."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of each token, when they were asked for."""
    score: float | None = None
    """What a beam search ranked it by."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of an answer being written. The last one carries ``finish_reason`` and ``usage``."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens taken with this piece, when they were asked for."""
    index: int = 0
    """Which of the ``n`` answers to one prompt it belongs to."""
    token_ids: tuple[int, ...] = ()
    """The tokens taken with this piece; one may come long before its text does."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the prompt's tokens, when they were asked for; nothing is known of the first. With the first piece alone."""
    token_bytes: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    """What every token that the log-probabilities name stands for, in UTF-8; one may hold part of a character."""


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
        """Answers in the order of ``prompts``, ``options.n`` of each."""
        ...

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; joined texts equal ``generate``'s text."""
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
        ...
