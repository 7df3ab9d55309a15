"""What a template may use up, and Jinja's filters and methods behind it: each pays before it makes much out of little.

A rendering has one ``Meter``. Whatever makes a text or a list pays by its length, whatever repeats pays a step; lists
inside lists pay by what writing them out would take. Knows nothing of how templates are parsed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

from jinja2 import pass_environment
from jinja2.environment import Environment
from jinja2.filters import FILTERS

MAX_STEPS = 500_000
MAX_SECONDS = 3.0
"""Processor time of the rendering thread, so that a busy machine refuses nobody."""
_BASE_CHARACTERS, _CHARACTERS_PER_INPUT = 16_000_000, 64
_BASE_OUTPUT, _OUTPUT_PER_INPUT = 1_000_000, 8


class LimitError(Exception):
    """A template asked for more than any honest one needs."""


class Meter:
    """What one rendering has left."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._sizes: dict[int, tuple[Any, int]] = {}
        self._largest = _BASE_CHARACTERS
        self._steps = MAX_STEPS
        self._until = time.thread_time() + MAX_SECONDS
        size = 0
        for value in variables.values():
            self._largest = max(self._largest, 1 << 40)  # what the caller gives is not the template's fault
            size += self.size(value)
        self._characters = _BASE_CHARACTERS + _CHARACTERS_PER_INPUT * size
        self._largest = _BASE_CHARACTERS // 4 + 4 * size
        self._output = _BASE_OUTPUT + _OUTPUT_PER_INPUT * size

    def step(self) -> bool:
        """One more step; always True, so that it can stand in a condition."""
        self._steps -= 1
        if self._steps < 0:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps")
        if not self._steps & 15 and time.thread_time() > self._until:
            raise LimitError(f"it runs longer than {MAX_SECONDS:g} seconds")
        return True

    def spend(self, characters: int) -> None:
        """About to make or look through this many characters (or list items)."""
        self._characters -= characters
        if self._characters < 0:
            raise LimitError("it makes more text than any conversation needs")
        if characters > 10_000 and time.thread_time() > self._until:
            raise LimitError(f"it runs longer than {MAX_SECONDS:g} seconds")

    def write(self, characters: int) -> None:
        """This many characters of the result."""
        self.step()
        self._output -= characters
        if self._output < 0:
            raise LimitError("its text is far longer than the messages")

    def size(self, value: Any) -> int:
        """Characters and items that writing ``value`` out would take: what is in it twice counts twice."""
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, (list, tuple, dict)):
            return 8
        container = cast("list[Any] | tuple[Any, ...] | dict[Any, Any]", value)
        known = self._sizes.get(id(container))
        if known is not None:
            return known[1]
        parts: Iterable[Any] = [*container, *container.values()] if isinstance(container, dict) else container
        total = 1 + sum(self.size(part) for part in parts)
        if total > self._largest:
            raise LimitError("it nests more lists than any conversation needs")
        self._sizes[id(container)] = (container, total)  # held, so that no other object gets its id
        return total

    def made(self, value: Any) -> Any:
        """``value`` was just made: pay for it."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(8 * len(cast("list[Any]", value)) + 1)
            self.size(value)
        elif isinstance(value, Iterator):
            return self._counted(cast("Iterator[Any]", value))
        return value

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value


METER: ContextVar[Meter] = ContextVar("meter")
"""Of the rendering that runs in this thread or task."""


def text_of(value: Any) -> str:
    """``value`` written out."""
    meter = METER.get()
    meter.step()
    if not isinstance(value, str):
        meter.spend(meter.size(value))
        value = str(value)
    return value


# ---- methods, operators and dates -----------------------------------------------------------------------------------


def check_method(
    meter: Meter, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Pay for a method of a text before it runs; returns its arguments, iterators made lists."""
    meter.spend(len(text) // 16)
    if name in ("center", "ljust", "rjust", "zfill"):
        meter.spend(max((n for n in args if isinstance(n, int)), default=0))
    elif name == "join" and args:
        items = list(meter.made(iter(args[0])))
        meter.spend(sum(map(meter.size, items)) + len(text) * len(items))
        args = (items, *args[1:])
    elif name == "replace":
        _check_replace(meter, text, *args, **kwargs)
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        meter.spend(50 * (text.count(separator) if separator else len(text) // 2))
    elif name == "format":
        if re.search(r":[^{}]*(?:[0-9]{3}|\{)", text):
            raise LimitError("it formats to a huge width")
        parts = [*args, *kwargs.values()]
        meter.spend(text.count("{") * max(map(meter.size, parts), default=0) * 2)
    return args


def _check_replace(meter: Meter, text: str, old: str, new: str, count: int | None = None, **_: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        meter.spend(len(text) + text.count(old) * len(new))


def check_percent(meter: Meter, text: str, values: Any) -> None:
    """Pay for ``text % values``."""
    if re.search(r"%[^a-zA-Z%]*(?:\*|[0-9]{3})", text):
        raise LimitError("it formats to a huge width")
    meter.spend(text.count("%") * meter.size(values))


def _check_indent(meter: Meter, text: str, width: int | str = 4, *_: Any, **__: Any) -> None:
    meter.spend(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _check_batch(meter: Meter, values: Any, linecount: int, fill_with: Any = None) -> None:
    meter.spend(8 * linecount)


def _check_round(meter: Meter, value: Any, precision: int = 0, method: str = "common") -> None:
    if abs(precision) > 30:
        raise LimitError("it rounds to more digits than numbers have")


def _check_format(meter: Meter, text: str, *values: Any, **named: Any) -> None:
    check_percent(meter, text, [*values, *named.values()])


_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "indent": _check_indent,
    "batch": _check_batch,
    "round": _check_round,
    "format": _check_format,
    "center": lambda meter, text, width=80: meter.spend(width),
}
_PASSES_ON = frozenset(("default", "d", "first", "last", "length", "count", "max", "min"))
"""Filters that make nothing new."""


def strftime_now(form: str) -> str:
    """The date as templates ask for it, for example "%d %b %Y"."""
    if len(form) > 100 or re.search(r"%[^a-zA-Z%]*[0-9]", form):
        raise LimitError("it asks for an endless date")
    return datetime.now().strftime(form)


# ---- filters and tests ----------------------------------------------------------------------------------------------


_METERED = frozenset("""
    abs batch capitalize center count d default dictsort first float format groupby indent int items last
    length lower map max min reject rejectattr replace reverse round select selectattr sort title trim
    truncate unique upper urlencode wordcount
""".split())  # fmt: skip  # noqa: SIM905


def _metered(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    passed = getattr(original, "jinja_pass_arg", None)  # context or environment before the value
    num_passed = 0 if passed is None else 1

    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.step()
        if name in _CHECKS:
            _CHECKS[name](meter, *args[num_passed:], **kwargs)
        value = args[num_passed]
        if name not in _PASSES_ON and isinstance(value, (str, list, tuple, dict)):
            meter.spend(len(cast("str", value)) * (16 if name in ("sort", "dictsort", "unique", "groupby") else 1))
        result = original(*args, **kwargs)
        return result if name in _PASSES_ON else meter.made(result)

    if passed is not None:
        metered.jinja_pass_arg = passed  # pyright: ignore[reportFunctionMemberAccess]
    return metered


def metered_test(original: Callable[..., Any]) -> Callable[..., Any]:
    """A test (``is …``) behind the meter."""

    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.step()
        for value in args:
            if isinstance(value, (str, list, tuple, dict)):
                meter.spend(len(value) // 16 if isinstance(value, str) else meter.size(value) // 16)
        return original(*args, **kwargs)

    return metered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: Chinese stays Chinese, nothing is escaped for HTML."""
    meter = METER.get()
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > 16 or sum(map(len, separators or ())) > 16:
        raise LimitError("it indents JSON endlessly")
    meter.spend(6 * meter.size(value))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return meter.made(text)


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    meter, pieces = METER.get(), list[str]()
    for value in values:
        item = value if attribute is None else _attribute(environment, value, attribute)
        pieces += [d, text_of(item)] if pieces else [text_of(item)]
        meter.step()
    return environment.concat(pieces)


def _attribute(environment: Environment, value: Any, path: str | int) -> Any:
    for name in path.split(".") if isinstance(path, str) else [path]:
        value = environment.getitem(value, int(name) if isinstance(name, str) and name.isdigit() else name)
    return value


def _list(values: Iterable[Any]) -> list[Any]:
    meter = METER.get()
    if isinstance(values, (str, list, tuple, dict)):
        meter.spend(8 * len(cast("str", values)))
    return meter.made([value for value in values if meter.step()])


@pass_environment
def _sum(environment: Environment, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    numbers = [v if attribute is None else _attribute(environment, v, attribute) for v in _list(values)]
    if not all(isinstance(number, (int, float)) for number in [start, *numbers]):
        raise TypeError("only numbers can be summed")
    return sum(numbers, start)


def _escape(value: Any) -> str:
    text = text_of(value)
    METER.get().spend(6 * len(text))
    for character, name in (("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = text.replace(character, name)
    return text


_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _to_json,
    "join": _join,
    "list": _list,
    "sum": _sum,
    "string": text_of,
    "safe": text_of,
    "escape": _escape,
    "e": _escape,
}


ALL_FILTERS: dict[str, Callable[..., Any]] = {name: _metered(name, FILTERS[name]) for name in sorted(_METERED)}
"""Jinja's filters that chat templates may use, each behind the meter."""
ALL_FILTERS |= _OWN_FILTERS
