"""Linear attention with decay: what a row has read is one matrix, so a token costs the same however long the row is.

    S ← exp(decay) · S + kᵀ v        y = q S

That is Mamba-2's state space (Dao & Gu 2024, section 7) and, where ``rate`` is given, the gated delta rule (Yang et al.
2024): before v is written, what S already answers to k is taken off, v ← rate · (v - k exp(decay) S). ``chunked`` reads
many tokens with few large products, ``step`` one token; both do the same sum. Knows no layers, padding or caches.

    Q tokens of a chunk     G key heads     R value heads that share a key head     K key width     V value width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recur(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, *, chunk: int, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``step`` for one token, ``chunked`` for more; shapes as in ``chunked``."""
    if v.shape[1] > 1:
        return chunked(q, k, v, decay, state, chunk=chunk, rate=rate)
    y, state = step(q[:, 0], k[:, 0], v[:, 0], decay[:, 0], state, rate=None if rate is None else rate[:, 0])
    return y.unsqueeze(1), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, *, chunk: int, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read T tokens of each row. q, k: (B, T, G, K); v: (B, T, G·R, V); decay ≤ 0 and rate: (B, T, G·R); state:
    (B, G, K, R·V) → y like v, and the new state.

    Inside a chunk tokens meet as in attention, (Q, Q); chunks meet through the state. Tokens with v, decay and rate 0
    change nothing. The state before a chunk is multiplied by exponents of sums ≤ 0 only, so nothing overflows.
    """
    rows, tokens, heads, width = v.shape
    groups = k.shape[2]
    count = -(-tokens // chunk)
    size = -(-tokens // count)  # chunks of one size, as few padded tokens as can be
    q, k, v = (_chunks(x, count, size, groups) for x in (q, k, v))  # (B, C, G, Q, ·)
    total = _chunks(decay.unsqueeze(-1), count, size, groups).cumsum(dim=3)  # (B, C, G, Q, R)
    since = total.exp().unsqueeze(-1)  # what is left of the state at each token: (B, C, G, Q, R, 1)
    until = (total[:, :, :, -1:] - total).exp().unsqueeze(-1)  # what is left of each token at the chunk's end
    between = _between(total)
    seen = (q @ k.mT).unsqueeze(3) * between  # (B, C, G, R, Q, Q)
    corrections: Sequence[Tensor | None] = [None] * count
    if rate is not None:
        rates = _chunks(rate.unsqueeze(-1), count, size, groups).transpose(3, 4).unsqueeze(-1)  # (B, C, G, R, Q, 1)
        corrections = (_solved((k @ k.mT).unsqueeze(3) * between * rates) * rates.mT).unbind(1)

    outputs: list[Tensor] = []
    every = (x.unbind(1) for x in (q, k, v, since, until, seen))  # indexing would cost C² going backward
    for q, k, v, since, until, seen, correction in zip(*every, corrections, strict=True):
        new = v.unflatten(-1, (-1, width))  # (B, G, Q, R, V)
        if correction is not None:
            new = new - since * (k @ state).view_as(new)
            new = (correction @ new.transpose(2, 3)).transpose(2, 3)
        inside = (seen @ new.transpose(2, 3)).transpose(2, 3)
        outputs.append(inside + since * (q @ state).view_as(inside))
        kept = (state.unflatten(-1, (-1, width)) * since[:, :, -1:]).flatten(-2)
        state = kept + k.mT @ (until * new).flatten(-2)
    y = torch.stack(outputs, dim=1).transpose(2, 3)  # (B, C, Q, G, R, V)
    return y.reshape(rows, count * size, heads, width)[:, :tokens], state


def step(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, *, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read one token of each row. q, k: (B, G, K); v: (B, G·R, V); decay, rate: (B, G·R); state: (B, G, K, R·V) → y
    like v, and the new state."""
    groups = k.shape[1]
    new = v.unflatten(1, (groups, -1))  # (B, G, R, V)
    kept = state.unflatten(-1, new.shape[2:]) * decay.exp().view(*new.shape[:2], -1).unsqueeze(2).unsqueeze(-1)
    kept = kept.flatten(-2)
    if rate is not None:
        new = (new - (k.unsqueeze(2) @ kept).view_as(new)) * rate.view(*new.shape[:3], 1)
    state = kept + k.unsqueeze(-1) * new.flatten(-2).unsqueeze(2)
    return (q.unsqueeze(2) @ state).view_as(v), state


def _chunks(x: Tensor, count: int, size: int, groups: int) -> Tensor:
    """(B, T, heads, ·) → (B, C, G, Q, heads/G · ·), zeros after the last token."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, count * size - x.shape[1]))
    return padded.reshape(x.shape[0], count, size, groups, -1).transpose(2, 3).contiguous()


def _between(total: Tensor) -> Tensor:
    """How much of a token is left at each later one of its chunk: summed decay (B, C, G, Q, R) → (B, C, G, R, Q, Q)."""
    between = (total.unsqueeze(4) - total.unsqueeze(3)).permute(0, 1, 2, 5, 3, 4)
    later = torch.ones(between.shape[-2:], dtype=torch.bool, device=total.device).triu(1)
    return between.masked_fill(later, float("-inf")).exp()


def _solved(system: Tensor) -> Tensor:
    """(1 + the part of ``system`` strictly below its diagonal)⁻¹: (…, Q, Q). In the delta rule each token of a chunk
    corrects for those before it; this is all of that at once (the UT transform of Yang et al. 2024)."""
    ones = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
    return torch.linalg.solve_triangular(system, ones, upper=False, unitriangular=True)
