"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from types import TracebackType


class HeldBack:
    """Inside the block Ctrl-C waits until ``let_through``, so that no step is cut in two; a second one does not wait.

    Outside the main thread, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.is_asked = False
        """Whether the block is to end; may be set by others who heard of it."""
        self._is_active = False

    def __enter__(self) -> HeldBack:
        self._is_active = threading.current_thread() is threading.main_thread()
        if self._is_active:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, self._previous)

    def let_through(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.is_asked:
            raise KeyboardInterrupt

    def _note(self, *_: object) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
