"""Asks any OpenAI-compatible server: ``Client`` (async) and ``RemoteModel``, a LanguageModel over it."""

from danlu.client.client import Client, Patience
from danlu.client.remote import RemoteModel

__all__ = ["Client", "Patience", "RemoteModel"]
