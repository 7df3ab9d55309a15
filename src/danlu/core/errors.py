"""Every error a user can meet. Each says what was wrong, the value got, and what to do.

    DanluError
    ├── ConfigError        a recipe, option or override cannot be used
    ├── DataError          a file, row or column is not what was promised
    ├── FetchError         something could not be downloaded, or is not what was pinned
    ├── ModelError         weights, tokenizer or model folder cannot be used
    ├── StoreError         an artifact, run or alias is missing or damaged
    ├── ResourceError      the machine says no: disk full, port in use
    ├── TrainError         training cannot start or go on
    ├── ScriptError        an external command of a recipe failed
    └── RequestError       a request to a served model cannot be answered (carries an HTTP status)
        ├── OverloadedError    the queue is full; try again later
        └── UnavailableError   nothing can be answered now: starting, stopping or restarting

``assert`` is for our own bugs and never appears here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DanluError(Exception):
    """Base of all user-facing errors: ``message`` says what is wrong, ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(DanluError):
    """A recipe, option or override cannot be used."""


class DataError(DanluError):
    """A file, row or column is not what was promised."""


class FetchError(DanluError):
    """Something could not be downloaded, or is not what was pinned."""


class ModelError(DanluError):
    """Weights, tokenizer or model folder cannot be used."""


class StoreError(DanluError):
    """An artifact, run or alias is missing or damaged."""


class ResourceError(DanluError):
    """The machine says no: disk full, port in use."""


class TrainError(DanluError):
    """Training cannot start or go on."""


class ScriptError(DanluError):
    """An external command of a recipe failed."""


class RequestError(DanluError):
    """A request cannot be answered.

    ``status`` is the HTTP status, ``code`` OpenAI's error code, ``param`` the offending field.
    """

    def __init__(
        self, message: str, hint: str = "", *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param


class OverloadedError(RequestError):
    """The queue is full. ``retry_after_s`` is when to try again."""

    def __init__(self, message: str, hint: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint, status=429, code="rate_limit_exceeded")
        self.retry_after_s = retry_after_s


class UnavailableError(RequestError):
    """Nothing can be answered now. ``retry_after_s`` is when to try again."""

    def __init__(self, message: str, hint: str = "", *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, hint, status=503, code=code)
        self.retry_after_s = retry_after_s


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest known word, or listing all of them: the hint of every unknown-key error."""
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(words)}." if words else "None are known here."
