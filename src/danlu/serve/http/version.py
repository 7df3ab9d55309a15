"""Which danlu answers."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("danlu")
FINGERPRINT = f"danlu-{VERSION}"
"""OpenAI's ``system_fingerprint``: the same seed gives the same answer while it stays the same."""
