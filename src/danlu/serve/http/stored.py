"""Responses that are kept for a while, in memory alone: for previous_response_id and GET.

Knows nothing of how they came to be. A tenant sees its own alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danlu.core.errors import RequestError
from danlu.serve.http.protocol.chat import ChatMessage
from danlu.serve.http.protocol.parse import shorten
from danlu.serve.http.replies.responses import ResponseReply
from danlu.serve.http.replies.shared import encode


@dataclass
class Stored:
    """One response, and the conversation up to its end."""

    tenant: str
    reply: ResponseReply
    messages: Sequence[ChatMessage]
    size_bytes: int
    cancel: Callable[[], None] | None = None
    """Ends it while it is being written."""


class ResponseStore:
    """At most so many responses, and bytes; the ones that were not asked for the longest go first."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0

    def keep(
        self, tenant: str, reply: ResponseReply, messages: Sequence[ChatMessage],
        cancel: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Keep or replace one."""
        self.drop(reply.id)
        size = len(encode(reply)) + len(encode(messages))
        self._kept[reply.id] = Stored(tenant, reply, messages, size, cancel)
        self._bytes += size
        while len(self._kept) > self._max_count or self._bytes > self._max_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, response_id: str) -> None:
        """Forget one."""
        old = self._kept.pop(response_id, None)
        if old is not None:
            self._bytes -= old.size_bytes

    def find(self, tenant: str, response_id: str, param: str | None = None) -> Stored:
        """The tenant's response of that id; RequestError 404 when there is none (any more)."""
        found = self._kept.get(response_id)
        if found is None or found.tenant != tenant:
            raise RequestError(
                f"There is no response {shorten(response_id)!r}.",
                "It was not stored, was made with another key, or had to go for newer ones.",
                status=404,
                code="response_not_found",
                param=param,
            )
        self._kept.move_to_end(response_id)
        return found
