"""The scheduler's view of an answer being written, and of one step. Knows token ids and pages, no text, no tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

NEVER = float("inf")
UNLIMITED = sys.maxsize


class Tenant:
    """What one tenant has got and what it waits for; forgotten when it has nothing here."""

    __slots__ = ("name", "num_running", "num_waiting", "served", "waiting_tokens")

    def __init__(self, name: str) -> None:
        self.name = name
        self.served = 0
        """Tokens computed for it, from where the least served tenant stood when it came."""
        self.num_running = 0
        self.num_waiting = 0
        self.waiting_tokens = 0


_NOBODY = Tenant("")


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One answer: the tokens to be computed, and where what was computed of them lies.

    The writer owns ``ids`` and ``drafts`` (it appends what it picks); the scheduler owns everything from ``state`` on.
    """

    ids: list[int]
    """Prompt and answer so far."""
    max_tokens: int
    """Most tokens that prompt and answer can have together."""
    request: Any = None
    """Whatever the writer wants to find here again."""
    tenant: str = ""
    priority: int = 0
    """Lower is served earlier."""
    deadline: float = NEVER
    """When ``Scheduler.sweep`` ends it, in the clock of ``plan``."""
    num_answers: int = 1
    """Answers that will be forked from this prompt; room for all of them is kept from the start."""
    salt: bytes | None = None
    """Prefixes are shared among rows with the same salt (see ``cache_salt``); None to share nothing."""
    reads_cache: bool = True
    """Whether prompt tokens found in the cache are not computed; false to learn their log-probabilities."""
    memory_tokens: int = 0
    """Tokens of the source that the decoder of an encoder-decoder looks back at."""
    drafts: list[int] = field(default_factory=list[int])
    """Guesses of the tokens that follow ``ids``, to be computed with the last of them in one piece."""

    state: Literal["new", "waiting", "running", "done"] = "new"
    arrival: tuple[int, int] = (0, 0)
    """Number in order of arrival, and of the answer among those of one prompt."""
    computed: int = 0
    """Tokens of ``ids`` whose keys and values its pages hold."""
    table: list[int] = field(default_factory=list[int])
    """Pages, in order."""
    room: int = 0
    """Tokens that the pages hold."""
    memory: list[int] = field(default_factory=list[int])
    """Pages of the memory pool."""
    slot: int = 0
    """Where recurrent layers keep its state."""
    keys: list[bytes] = field(default_factory=list[bytes])
    """Of the full pages of ``ids``, as far as they were needed."""
    is_writing: bool = False
    """Whether the prompt is done, so that it takes part in every step."""
    is_forked: bool = False
    """Whether the page it writes to next may belong to others, too."""
    is_long: bool = False
    """Whether it waits, or waited, in the line of long prompts."""
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache when it was first admitted."""
    preemptions: int = 0
    """How often it had to give its pages back."""
    prompt_tokens: int = 0
    """Tokens of ``ids`` when it was added."""
    queued_tokens: int = 0
    """Tokens it counts for while it waits."""
    added_at: float = 0.0
    """When it was added, in the clock of ``plan``."""
    share: Tenant = _NOBODY

    @property
    def rank(self) -> tuple[int, tuple[int, int]]:
        """Who has to give way to whom: the highest first."""
        return self.priority, self.arrival

    @property
    def pending(self) -> int:
        """Tokens still to be computed, drafts not counted."""
        return len(self.ids) - self.computed


class Piece(NamedTuple):
    """Tokens of one row that are computed in a step."""

    row: Row
    start: int
    """Tokens of the row that its pages hold already."""
    num_tokens: int
    """Tokens to compute, drafts included."""
    is_last: bool
    """Whether it ends at (or, with drafts, after) the row's last token, so that the next one can be picked."""

    @property
    def num_drafts(self) -> int:
        """Guesses at its end."""
        return max(0, self.start + self.num_tokens - len(self.row.ids))

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens, in order."""
        row, end = self.row, self.start + self.num_tokens
        if end <= len(row.ids):
            return row.ids[self.start : end]
        return row.ids[self.start :] + row.drafts[: end - len(row.ids)]


@dataclass(slots=True)
class Plan:
    """What the next step does. Copies come first, then all pieces in one pass."""

    started_at: float
    """When it was made, in the clock of ``plan``."""
    pieces: list[Piece] = field(default_factory=list[Piece])
    copies: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Pages to copy, (source, target) each, no target twice."""
    admitted: list[Row] = field(default_factory=list[Row])
    """Rows that left the queue. Those with ``memory_tokens`` need their source encoded into ``memory`` now."""
    preempted: list[Row] = field(default_factory=list[Row])
    """Rows that went back to the queue; they go on by themselves."""
    refused: list[Row] = field(default_factory=list[Row])
    """Rows that no longer fit even alone. They are done."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(piece.num_tokens for piece in self.pieces)
