"""Somebody who looks on while a run trains: how ``danlu train check`` proves a recipe without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danlu.train.run import TrainingRun


class Watch:
    """Looks at nothing. Methods may raise to end the run."""

    def has_gradients(self, run: TrainingRun[Any], count: float) -> None:
        """The masters of ``run`` have a step's mean gradient over ``count`` supervised things, not clipped yet."""

    def stepped(self, run: TrainingRun[Any]) -> None:
        """A step is done and logged, not saved yet."""


WATCH: ContextVar[Watch] = ContextVar("watch", default=Watch())  # noqa: B039 - it has no state
"""Who looks on at runs that start now."""


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Runs that start inside the block are looked at."""
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)
