"""Sends items to the other process from a thread of its own, so that nobody waits for the socket; bounded.

What has gathered while one write was on its way goes out in the next one: at full load all events of a step of the
engine share a write. Knows nothing of what the items mean.
"""

from __future__ import annotations

import socket
import threading

from danlu.serve.engine.wire import MAX_FRAME_BYTES, frames, largest_item


class Outbox:
    """Items on their way out. Every method may be called from any thread."""

    def __init__(
        self, sock: socket.socket, *, max_frame_bytes: int = MAX_FRAME_BYTES, max_unsent_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.max_item_bytes = largest_item(max_frame_bytes)
        self.num_writes = 0
        self._sock = sock
        self._max_frame_bytes = max_frame_bytes
        self._max_unsent_bytes = max_unsent_bytes
        self._items: list[bytes] = []
        self._size_bytes = 0
        self._is_sending = self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine-outbox", daemon=True)
        self._thread.start()

    def put(self, item: bytes, *, is_urgent: bool = False) -> bool:
        """Queue an item; False when it does not fit into a frame, or too many bytes wait already.

        An urgent one (a cancel, an error, the last word) is taken however many bytes wait. After ``close`` items are
        dropped: the other side is gone, which whoever reads from it hears.
        """
        if len(item) > self.max_item_bytes:
            return False
        with self._changed:
            if not is_urgent and self._items and self._size_bytes + len(item) > self._max_unsent_bytes:
                return False
            if not self._is_closed:
                self._items.append(item)
                self._size_bytes += len(item)
                self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is sent; False when it is not within ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_closed or not (self._items or self._is_sending), timeout_s
            )  # fmt: skip

    def close(self) -> None:
        """Drop what is unsent and end the thread. Safe to call twice."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._is_closed)
                if self._is_closed:
                    return
                items, self._items = self._items, []
                self._size_bytes = 0
                self._is_sending = True
            try:
                for frame in frames(items, self._max_frame_bytes):
                    self._sock.sendall(frame)
                    self.num_writes += 1
            except OSError:  # the other side is gone: its reader hears that too and acts
                self.close()
