"""Log-probabilities of completions: rows through the network, their supervised tokens through its head.

Gives the tokens of all rows end to end and how many each row has; what is made of them is for preference.py, policy.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from danlu.models.attend import PackedAttend, row_positions
from danlu.models.network import Network
from danlu.text.chat import RenderedChat
from danlu.train.loss import collate
from danlu.train.losses.tokens import TokenScores, row_means, row_sums, token_scores


@dataclass(frozen=True)
class Completions:
    """What a model said of the supervised tokens of B rows."""

    tokens: TokenScores
    """Of all rows, end to end: M tokens."""
    counts: tuple[int, ...]
    """Supervised tokens of each row; together M."""
    num_tokens: int
    """Tokens that were read, prompts included."""

    def sums(self) -> Tensor:
        """(B,) log-probability of each completion."""
        return row_sums(self.tokens.logprobs, self.counts)

    def means(self) -> Tensor:
        """(B,) log-probability a token."""
        return row_means(self.tokens.logprobs, self.counts)


def read_completions(
    network: Network, rows: Sequence[RenderedChat], *, temperature: float = 1.0, chunk_rows: int | None = None
) -> Completions:
    """Log-probability of each supervised token of packed rows (of conversations: the answers)."""
    device = network.device
    batch = collate(rows)
    positions = row_positions(batch.lengths, batch.shared).to(device)
    hidden = network(batch.ids.to(device), positions, PackedAttend(batch.lengths, device, batch.shared))  # (N, D)
    chosen = hidden.index_select(0, batch.predicts.to(device))  # (M, D)
    assert network.head is not None
    scores = token_scores(
        network.head, chosen, batch.targets.to(device), temperature=temperature, chunk_rows=chunk_rows
    )
    return Completions(scores, tuple(sum(row.is_answer[1:]) for row in rows), batch.num_tokens)
