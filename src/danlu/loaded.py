"""What ``danlu.load`` gives for a model of texts: all that a LoadedModel can do, and an engine of its own.

Part of the facade: models/ knows of no engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from danlu.models.loaded import LoadedModel

if TYPE_CHECKING:
    from danlu.serve.engine.config import EngineConfig
    from danlu.serve.engine.engine import Engine


class Loaded(LoadedModel):
    """A model in memory."""

    def engine(self, config: EngineConfig | None = None) -> Engine:
        """An engine that answers many callers at once with this model, in this process; its weights are shared.

        Use it in a ``with`` block, or ``stop`` it. Raises ResourceError when there is no room for its cache.
        """
        from danlu.serve.engine.engine import Engine  # when it is asked for, as everything of the facade

        return Engine({short_name(self.name): self.model}, config)


def short_name(model: str | Path) -> str:
    """What an engine calls a model: the last part of its path or id."""
    return Path(model).name.removesuffix(".gguf").partition("@")[0] or "model"
