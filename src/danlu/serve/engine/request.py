"""The seam between the engine and whoever hands it requests: submit one, hear its events, cancel it.

A request is plain data and so is an event, so that the engine may stand in this process or in another. Knows nothing of
torch, HTTP or JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from danlu.core.errors import DanluError
from danlu.core.records import Delta, GenerateOptions, Prompt, Usage
from danlu.text.tool_formats import ToolFormat

Text = str | tuple[str, str] | list[int]
"""A text, a pair that the model reads together, or token ids."""
IMAGE_MARK = "\ufffc"
"""Stands in a message's content where the next one of ``WriteRequest.images`` belongs (object replacement)."""
Ability = Literal["write", "embed", "classify", "tag", "score"]
"""What a model can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and how urgently."""

    tenant: str = ""
    """Whose request it is: tenants take turns, and none reads what another left in the prefix cache."""
    priority: int = 0
    """Lower is served earlier; equal ones in turn of tenants, then of arrival."""
    timeout_s: float | None = None
    """Longest time from ``submit`` to the last event; the request then ends with RequestError 504."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What an answer must look like."""

    kind: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    """How ``text`` is to be read; "lark" is a context-free grammar in Lark's notation."""
    text: str = ""
    """The schema as JSON, the expression, the grammar, or the choices as a JSON list; empty for any JSON object."""
    after: str = ""
    """The grammar is in force only after this text was written once (tool calls); empty for from the start."""
    calls: str = ""
    """A grammar of tool calls in Lark's notation: the answer is either that or what ``text`` says; empty for none. Not
    for "lark"."""


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """Continue a prompt. Events: Deltas, ``options.n`` of which (one for each ``index``) have a ``finish_reason``."""

    model: str
    """Name of a model, or of an adapter."""
    prompt: Prompt | list[int]
    """A text, a conversation, or token ids; of an encoder-decoder the source."""
    options: GenerateOptions
    """How to continue it. With ``n`` > 1 or ``num_beams`` > 1 the answers share the prompt's pages."""
    caller: Caller = field(default_factory=Caller)
    """Who asks."""
    grammar: Grammar | None = None
    """What the answer must look like."""
    prompt_logprobs: int | None = None
    """Tell the log-probability of each token of the prompt, and of this many likeliest ones, with the first Delta."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions the chat template is told of, in OpenAI's form."""
    template_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further variables for the chat template; only those that the server allows come this far."""
    cache_salt: str = ""
    """Requests with different salts share no pages, even of one tenant."""
    images: tuple[bytes, ...] = ()
    """Image files (PNG, JPEG, WebP), one for each IMAGE_MARK of the prompt, for models that take them."""


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """Read texts or images in one pass each. Event: one Reading."""

    model: str
    """Name of a model."""
    task: Literal["embed", "classify", "tag", "score"]
    """Vectors; labels; tagged spans; how well the second text of each pair answers the first."""
    texts: tuple[Text, ...] = ()
    """What to read, in order."""
    images: tuple[bytes, ...] = ()
    """Image files (PNG, JPEG, WebP), instead of texts, for models that take them."""
    caller: Caller = field(default_factory=Caller)
    """Who asks."""
    prompt: str | None = None
    """Name of one of a sentence model's own prompts ("query", "passage"), put before each text."""
    truncates: bool = True
    """Whether a text longer than the model's limit loses its end; it is an error otherwise."""


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """Turn a prompt into ids. Event: Reply with ``ids``, ``texts`` (each token's) and ``context_length``."""

    model: str
    prompt: Prompt
    tools: tuple[Mapping[str, Any], ...] = ()
    add_special_tokens: bool = True


@dataclass(frozen=True, kw_only=True)
class DetokenizeRequest:
    """Turn ids into text. Event: Reply with ``text``."""

    model: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerRequest:
    """Ask what the tokenizer is. Event: Reply with ``kind``, ``vocabulary_size``, ``end_ids``, ``chat_template``, …"""

    model: str


@dataclass(frozen=True, kw_only=True)
class AdapterRequest:
    """Load an adapter (PEFT folder) onto a model, replace it by a newer version, or unload it. Event: Reply."""

    action: Literal["load", "unload"]
    name: str
    folder: str = ""
    """Where it lies; for "load"."""
    model: str = ""
    """The model it belongs to; empty for the only one that is served."""


Request = WriteRequest | ReadRequest | TokenizeRequest | DetokenizeRequest | TokenizerRequest | AdapterRequest


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a ReadRequest is answered with; the field of its task is filled, one entry for each text or image."""

    usage: Usage
    vectors: bytes = b""
    """fp32 little-endian, row by row."""
    width: int = 0
    """Numbers of one vector."""
    labels: tuple[tuple[tuple[str, float], ...], ...] = ()
    """All labels with their probabilities, the likeliest first."""
    spans: tuple[tuple[tuple[str, int, int, float], ...], ...] = ()
    """Label, start and end (characters) and probability."""
    scores: tuple[float, ...] = ()
    """Relevance of each pair: a cross-encoder's probability, or a cosine of two vectors."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to every other request."""

    value: Mapping[str, Any]


Event = Delta | Reading | Reply | DanluError
OnEvent = Callable[[Event], None]
"""Called from the engine's thread, so it must be quick and must not raise. The last call is the event that completes
the request (see each kind), or an error; nothing follows it."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One name that clients may write as ``model``."""

    name: str
    abilities: frozenset[Ability]
    context_length: int
    """Most tokens of prompt and answer together, or of a text that is read."""
    base: str | None = None
    """The model an adapter belongs to."""
    created: int = 0
    """Seconds since 1970."""
    width: int = 0
    """Numbers of a vector, of models that embed."""
    labels: tuple[str, ...] = ()
    """Of models that classify."""
    takes_images: bool = False
    tool_format: ToolFormat = "hermes"
    """How it writes calls of functions."""
    thinks: Literal["no", "may", "at_once"] = "no"
    """Whether it writes thoughts before it answers: never, between ``<think>`` and ``</think>``, or from the first
    token on because its prompt ends with ``<think>``."""
    is_loaded: bool = True
    """Whether it is in memory; a model that is not is loaded by the first request for it."""


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """How one resident model is doing. Counters count from its start."""

    running: int = 0
    """Requests in the batch."""
    waiting: int = 0
    """Requests in the queue."""
    waiting_tokens: int = 0
    """Prompt tokens in the queue."""
    prompt_tokens: int = 0
    """Prompt tokens read, those found in the prefix cache not counted."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    generated_tokens: int = 0
    preemptions: int = 0
    """Requests that had to give their pages back and start over."""
    drafted_tokens: int = 0
    """Tokens guessed by prompt lookup."""
    accepted_tokens: int = 0
    """Those of them that were right."""
    cache_usage: float = 0.0
    """Share of the key/value pages in use, 0 to 1."""
    steps_by_batch_size: Mapping[int, int] = field(default_factory=dict[int, int])
    """Number of decode steps taken at each number of rows."""
    queue_waits_s: tuple[float, ...] = ()
    """Bounds of ``queue_counts``."""
    queue_counts: tuple[int, ...] = ()
    """Requests that waited at most so long before their first step; the last is all of them."""
    queue_total_s: float = 0.0
    """Sum of all waits."""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Time spent so far by part: "model", "sampling", "scheduling"."""


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """How the engine is doing, cheap enough to ask on every health check."""

    is_ready: bool
    """Loaded and not draining."""
    last_step_age_s: float
    """Seconds since the scheduler last took a turn; 0 while it has nothing to do."""
    models: Mapping[str, ModelStatus] = field(default_factory=dict[str, ModelStatus])
    """By name of the resident model."""
    restarts: int = 0
    """How often the engine's process had to be started again."""


class Ticket(Protocol):
    """One request inside the engine."""

    def cancel(self) -> None:
        """Drop the request, queued or running; it is swept before the next step and hears a last Delta with ``abort``
        or a RequestError. Thread-safe; does nothing when it is already finished."""
        ...


class ServingEngine(Protocol):
    """Batches requests and answers them. Every method may be called from any thread."""

    def models(self) -> Sequence[ServedModel]:
        """What is served now, adapters after their models."""
        ...

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Queue a request and return at once; never raises for anything that is wrong with it.

        A request that cannot be answered hears its error as its only event: RequestError 404 (code
        ``model_not_found``), 400 for what the model cannot do or read (``context_length_exceeded``, …), 503 while
        stopping, OverloadedError 429 when the queue is full. An answer that fills the context ends with ``length``, so
        ``options.max_tokens`` may be more than what is left.
        """
        ...

    def status(self) -> EngineStatus:
        """Numbers for health checks and metrics."""
        ...

    def stop(self, drain_s: float) -> None:
        """Take no more requests, finish the running ones within ``drain_s``, end the rest with ``abort``.

        Returns when the engine has stopped. A second call while the first one waits shortens its wait to the new
        ``drain_s``.
        """
        ...
