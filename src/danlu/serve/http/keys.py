"""Who may ask: API keys, each with a name and a tenant of its own. Keys from a file are known by their hash alone.

Knows nothing of routes or requests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import ConfigError
from danlu.serve.http.config import HttpConfig

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Holder:
    """Whoever holds a key; ``tenant`` is the start of its hash, never the key."""

    name: str = ""
    tenant: str = ""
    is_admin: bool = False


NOBODY = Holder()
"""Somebody without a key, where none is asked for."""


class Keys:
    """All keys of a server."""

    def __init__(self, config: HttpConfig) -> None:
        self._holders: dict[str, Holder] = {}
        if config.api_keys_file is not None:
            self._holders |= {digest: Holder(name, digest[:16]) for digest, name in _read(config.api_keys_file).items()}
        if config.api_key is not None:
            digest = _digest(config.api_key.encode())
            self._holders[digest] = Holder("api_key", digest[:16])
        self.is_asked = bool(self._holders)
        if config.admin_key is not None:
            digest = _digest(config.admin_key.encode())
            self._holders[digest] = Holder("admin", digest[:16], is_admin=True)

    def holder(self, authorization: bytes) -> Holder | None:
        """Whose key an Authorization header carries; None when it carries none of ours."""
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = _digest(given.strip())
        found = None
        for known, holder in self._holders.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = holder
        return found


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Name of each key by its hash; ConfigError for a file that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {path} cannot be read: {error}.", "Give a text file.") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        digest = words[1].lower().removeprefix("sha256:") if len(words) == 2 else ""
        if not _HASH.fullmatch(digest):
            raise ConfigError(
                f"Line {number} of {path} is no name with a SHA-256.",
                "Write a name and the output of: printf %s KEY | sha256sum",
            )
        keys[digest] = words[0]
    if not keys:
        raise ConfigError(f"api_keys_file {path} has no keys.", "Write one on each line, or leave the option out.")
    return keys
