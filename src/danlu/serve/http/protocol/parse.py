"""JSON bytes into a struct, or a RequestError whose ``param`` is the path of the field at fault.

Knows the fields that ask for what nobody serves; nothing of what any route means.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from danlu.core.errors import RequestError

logger = logging.getLogger(__name__)

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
    "use_beam_search": (None, False),
}
"""Fields of the API that would change the answer but are not served, with the values that ask for nothing."""

_IGNORED = frozenset(
    {
        "background", "include", "logits_processors", "metadata", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "service_tier", "skip_special_tokens",
        "spaces_between_special_tokens", "store", "truncation", "user", "verbosity",
    }
)  # fmt: skip
"""Fields that clients send and that change nothing here."""

_MAX_REMEMBERED_FIELDS = 100
_fields_warned_of: set[str] = set()

T = TypeVar("T")
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw])


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@functools.cache
def _known(kind: Any) -> frozenset[str]:
    return frozenset(getattr(kind, "__struct_encode_fields__", ()))


def parse(kind: type[T], body: bytes) -> T:
    """The request in ``body``. Raises RequestError with the field at fault in ``param``."""
    _check_utf8(body)
    try:
        known = _known(kind)
        if known:
            fields = _fields_of.decode(body)
            for name in fields.keys() - known:
                _check_unserved(name, fields[name])
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _mismatch(str(error)) from error
    except msgspec.DecodeError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise RequestError(f"The body is not JSON: {what}.", "Send one JSON object.") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.", "Send a flat JSON object.") from error


def _check_utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"The body is not UTF-8 (byte {body[error.start]:#04x} at position {error.start}).", "Encode it as UTF-8."
        ) from error


def _check_unserved(name: str, raw: msgspec.Raw) -> None:
    """Refuse a field that asks for what is not served; warn once of one that nobody knows."""
    if name in _NEUTRAL:
        value = msgspec.json.decode(raw)
        if not any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL[name]):
            raise RequestError(
                f"{name} is not served, and {shorten(bytes(raw).decode())} would change the answer.",
                "Leave it out.",
                code="unsupported_parameter",
                param=name,
            )
        return
    is_news = name not in _IGNORED and name[:64] not in _fields_warned_of
    if is_news and len(_fields_warned_of) < _MAX_REMEMBERED_FIELDS:
        _fields_warned_of.add(name[:64])
        logger.warning("A request has the unknown field %r; it is ignored.", name[:64])


def shorten(text: str) -> str:
    """At most 60 characters of what a client sent, for an error message."""
    return text if len(text) <= 60 else text[:60] + "…"


_PATH = re.compile(r"^(?P<what>.*) - at `(?:key` in `)?\$?\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>\w+)`")


def _mismatch(text: str) -> RequestError:
    """msgspec's complaint as a RequestError whose ``param`` is the path of the field."""
    found = _PATH.match(text)
    what, path = (found["what"], found["path"]) if found else (text, "")
    missing = _MISSING.match(what)
    if missing:
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return RequestError(f"{param} is missing.", "Every request of this kind needs it.", param=param)
    what = shorten(what[:1].lower() + what[1:]) if len(what) > 200 else what[:1].lower() + what[1:]
    is_role = what.startswith("invalid enum value") and path.endswith("role")
    hint = "Use system, developer, user, assistant or tool." if is_role else "Mend this field."
    return RequestError(f"{path or 'The body'}: {what}.", hint, param=path or None)
