"""The seam between the engine and whoever hands it requests: submit a prompt, hear its deltas, cancel it.

Knows nothing of torch, HTTP or JSON; its fake in the tests is under 50 lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from danlu.core.errors import DanluError
from danlu.core.records import Delta, GenerateOptions, Prompt, Score

OnEvent = Callable[[Delta | DanluError], None]
"""Called from the engine's thread, so it must be quick and must not raise. The last call is a Delta with
``finish_reason`` and ``usage``, or an error; nothing follows it."""


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """How the engine is doing, cheap enough to ask on every health check."""

    is_ready: bool
    """Loaded and not draining."""
    running: int
    """Requests being generated."""
    waiting: int
    """Requests in the queue."""
    last_step_age_s: float
    """Seconds since the scheduler last took a turn; 0 while it has nothing to do."""
    prompt_tokens: int
    """Prompt tokens read since the start."""
    generated_tokens: int
    """Tokens written since the start."""
    steps_by_batch_size: Mapping[int, int] = field(default_factory=dict[int, int])
    """Number of steps taken at each number of requests in the batch."""
    cache_usage: float = 0.0
    """Share of the key/value cache in use, 0 to 1."""


class Ticket(Protocol):
    """One request inside the engine."""

    prompt_tokens: int

    def cancel(self) -> None:
        """Drop the request, queued or running. Thread-safe; does nothing when it is already finished."""
        ...


class ServingEngine(Protocol):
    """Batches requests and generates. Every method may be called from any thread."""

    name: str
    """The model's name, as shown by /v1/models."""
    context_length: int
    """Most tokens of prompt and answer together."""

    def submit(self, prompt: Prompt | Sequence[int], options: GenerateOptions, on_event: OnEvent) -> Ticket:
        """Queue a prompt and return at once. An answer that fills the context ends with ``length``, so
        ``options.max_tokens`` may be more than what is left.

        Raises RequestError for an empty prompt or one that leaves no room in the context (code
        ``context_length_exceeded``), and OverloadedError when the queue is full.
        """
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
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
