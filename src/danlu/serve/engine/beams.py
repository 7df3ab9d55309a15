"""A beam search in the engine: its rows step together, though each may be computed when there is room for it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import Delta
from danlu.models.beam import Candidates, Search
from danlu.serve.engine.row import Row


class Beams:
    """The rows of one search, and what those said that wait for the others."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.rows: list[Row] = []
        """As many as there may be beams; the last ones wait while there are fewer."""
        self._said: dict[Row, Candidates] = {}

    def hear(self, row: Row, logits: Tensor) -> list[int] | None:
        """Take what one beam says next, fp32 (V,). Once all have spoken the search goes on: the beam that each new one
        continues, or None while some are missing."""
        self._said[row] = self.search.candidates(self.rows.index(row), logits)
        speaking = self.rows[: len(self.search.beams)]
        if any(one not in self._said for one in speaking):
            return None
        parents = self.search.advance([self._said[one] for one in speaking])
        self._said.clear()
        return parents

    def deltas(self, wanted: int, cached_tokens: int) -> list[Delta] | RequestError:
        """The best answers, whole."""
        completions = self.search.completions()
        if len(completions) < wanted:
            return RequestError(
                f"The beam search found {len(completions)} answers, not {wanted}: nothing else may be written.",
                "Ask for fewer, or forbid less.", param="n",
            )  # fmt: skip
        return [
            Delta(
                text=found.text,
                finish_reason=found.finish_reason,
                usage=replace(found.usage, cached_tokens=cached_tokens),
                index=index,
                token_ids=found.token_ids,
            )
            for index, found in enumerate(completions)
        ]
