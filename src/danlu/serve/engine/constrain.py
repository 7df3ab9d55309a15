"""Keeps answers within a grammar: which tokens may come next, told to the sampler as masks over the logits.

A ``Constraint`` follows one answer. Knows nothing of requests, sampling or HTTP; grammars are compiled in grammar.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray

from danlu.models.sampling import keep_only
from danlu.serve.engine.grammar import (
    CompiledGrammar,
    GrammarLimits,
    GrammarVocabulary,
    compile_grammar,
    grammar_error,
)

__all__ = [
    "CompiledGrammar", "Constraint", "GrammarLimits", "GrammarVocabulary", "apply_masks", "compile_grammar",
]  # fmt: skip


class Constraint:
    """Where one answer stands in its grammar. Not for several threads at once."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._vocabulary = compiled.vocabulary
        self._matcher: LLMatcher | None = None if compiled.after else compiled.matcher.deep_copy()
        self._mask: NDArray[np.int32] | None = None
        self._written = bytearray()  # while the grammar is not in force
        self._taken: list[int] = []  # for each token of the answer, how many the matcher took
        self._sizes: list[int] = []  # and its bytes, while the grammar is not in force

    @property
    def is_active(self) -> bool:
        """Whether the grammar is in force; until then every token may come."""
        return self._matcher is not None

    @property
    def is_done(self) -> bool:
        """Whether the answer is complete and nothing can be added: it ends here with ``stop``."""
        return self._matcher is not None and self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """Whether the answer meets the grammar as it is."""
        return self._matcher is not None and self._matcher.is_accepting()

    def allowed(self) -> NDArray[np.int32]:
        """The tokens that may come next, (V/32,) words of 32 bits, the lowest bit first; to be read, not changed.

        Only while ``is_active``. Raises RequestError when the grammar has become too much work.
        """
        assert self._matcher is not None, "ask only while the grammar is in force"
        if self._mask is None:
            mask = self._vocabulary.mask_of(self._matcher)
            self._check()
            if not mask.any():
                raise grammar_error("NoExtensionBias")
            self._mask = mask
        return self._mask

    def take(self, token_id: int) -> bool:
        """Whether this token may come next; if so, the answer goes on with it. Far less work than ``allowed``.

        Raises RequestError as ``allowed``.
        """
        if self._matcher is not None and self._mask is None:
            forced = self.forced()
            may_be = token_id == forced[0] if forced else self._vocabulary.may_be_allowed(token_id)
            if not may_be or self._matcher.is_stopped():
                return False
            if self._matcher.try_consume_tokens([token_id]):
                self._taken.append(1)
                return True
            self._check()
            return False
        if self._matcher is not None and not self.allows(token_id):
            return False
        self.advance(token_id)
        return True

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next."""
        if self._matcher is None:
            return True
        if token_id >= self._vocabulary.size:
            return False
        return bool(self.allowed()[token_id // 32] >> (token_id % 32) & 1)

    def advance(self, token_id: int) -> None:
        """The answer goes on with this token, which is one of those allowed."""
        self._mask = None
        if self._matcher is None:
            piece = self._piece(token_id)
            self._written += piece
            self._sizes.append(len(piece))
            self._taken.append(self._start(len(piece)))
        elif self._matcher.is_stopped():
            self._taken.append(0)
        else:
            self._matcher.consume_token(token_id)
            self._taken.append(1)
            self._check()

    def forced(self) -> list[int]:
        """Tokens that have to come next, as far as there is no choice; empty where there is one."""
        if self._matcher is None or self._matcher.is_stopped():
            return []
        return [] if self._matcher.is_error() else self._matcher.compute_ff_tokens()

    def num_valid(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, the answer could go on with."""
        if self._matcher is None:
            return len(token_ids)
        return self._matcher.validate_tokens(list(token_ids))

    def rollback(self, num_tokens: int) -> None:
        """Take the last tokens back."""
        if not num_tokens:
            return
        assert num_tokens <= len(self._taken), "more than were written"
        self._mask = None
        kept = len(self._taken) - num_tokens
        taken = sum(self._taken[kept:])
        del self._taken[kept:]
        if self._compiled.after and kept < len(self._sizes):  # before the grammar was in force
            self._matcher = None
            left_out = sum(self._sizes[kept:])
            del self._sizes[kept:]
            del self._written[len(self._written) - left_out :]
        elif taken and self._matcher is not None:
            self._matcher.rollback(taken)

    def fork(self) -> Constraint:
        """Another answer that begins as this one."""
        twin = Constraint.__new__(Constraint)
        twin._compiled, twin._vocabulary, twin._mask = self._compiled, self._vocabulary, self._mask
        twin._matcher = None if self._matcher is None else self._matcher.deep_copy()
        twin._written, twin._taken, twin._sizes = self._written[:], self._taken[:], self._sizes[:]
        return twin

    def _piece(self, token_id: int) -> bytes:
        pieces = self._vocabulary.pieces
        return pieces[token_id] if token_id < len(pieces) else b""

    def _start(self, num_new: int) -> int:
        """Put the grammar in force if the newest bytes complete its trigger; how many tokens it takes at once."""
        after = self._compiled.after
        place = self._written.find(after, max(0, len(self._written) - num_new - len(after) + 1))
        if place < 0:
            return 0
        rest = bytes(self._written[place + len(after) :])
        matcher = self._compiled.matcher.deep_copy()
        tokens = self._vocabulary.tokens_of(rest)
        if matcher.validate_tokens(tokens) < len(tokens):
            return 0  # the token that completes the trigger goes on against the grammar: the answer is no call
        if tokens:
            matcher.consume_tokens(tokens)
        self._matcher = matcher
        return len(tokens)

    def _check(self) -> None:
        assert self._matcher is not None
        if self._matcher.is_error():
            raise grammar_error(self._matcher.get_error())


def apply_masks(logits: torch.Tensor, rows: Sequence[tuple[int, Constraint]]) -> None:
    """Make the tokens that may not come next impossible, in place: logits (B, V), pairs of a row and its constraint.

    Rows whose grammar is not in force are left as they are. Raises RequestError as ``Constraint.allowed``.
    """
    for row, constraint in rows:
        if constraint.is_active:
            keep_only(logits[row], constraint.allowed())
