"""The attention product: softmax(q kᵀ) v under a rule. Knows rows of equal length only; padding is a length a row.

Two ways, one result: plain matrix products in blocks of queries, where windows or causality leave much of the table
empty, scores are capped, or the type is bf16 on a CPU; and torch's fused kernel for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BLOCKS = (128, 256)
"""Queries of a block, in rows of up to twice as many and in longer ones: small enough that causal rows skip much of
their table."""
_ALIGNED = 32
"""Half-width tables whose rows have a multiple of this many numbers take half the time."""
_LONGEST_KEPT = 1024
"""Longest rows whose weights are kept for a backward pass; torch's fused kernel makes them again instead."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How queries of a layer look at keys."""

    causal: bool = True
    """Whether a query sees nothing after its own place."""
    window: int | None = None
    """A query sees keys fewer than this many places away."""
    scale: float = 1.0
    """Scores are multiplied by this."""
    softcap: float | None = None
    """Scores are squeezed into ± this (Gemma 2): cap · tanh(score / cap)."""
    dropout: float = 0.0
    """Share of weights dropped, in training only."""


Mask = Callable[[range, range], Tensor | None]
"""Which of some keys (places of the row) some queries see: bool (T, S) or (B, 1, T, S), None for all of them."""


def visible(rule: Rule, queries: range, keys: range, lengths: Tensor | None, device: torch.device) -> Tensor | None:
    """The rule as a table: bool (T, S), or (B, 1, T, S) when ``lengths`` (B,) of rows differ; None when all is seen.

    A query sees its own place even in padding, so that no row of the table is empty.
    """
    q = torch.arange(queries.start, queries.stop, device=device).unsqueeze(1)
    k = torch.arange(keys.start, keys.stop, device=device).unsqueeze(0)
    seen: Tensor | None = None
    if rule.causal and len(queries) and keys.stop - 1 > queries.start:
        seen = k <= q
    if rule.window is not None and max(queries.stop - 1 - keys.start, keys.stop - 1 - queries.start) >= rule.window:
        near = (q - k).abs() < rule.window
        seen = near if seen is None else seen & near
    if lengths is not None:
        real = (k < lengths.to(device).view(-1, 1, 1)) | (q == k)  # (B, T, S)
        seen = (real if seen is None else seen & real).unsqueeze(1)
    return seen


def mix(q: Tensor, k: Tensor, v: Tensor, rule: Rule, mask: Mask, bias: Tensor | None = None) -> Tensor:
    """Mixed values of rows that lie side by side; the last query stands at the last key.

    q: (B, T, H, E); k, v: (B, S, K, E); ``bias`` is added to scores: (H, T, S) → (B, T, H, E).
    """
    length, span = q.shape[1], k.shape[1]
    offset = span - length if rule.causal else 0
    windowed = rule.window is not None and 2 * rule.window < span
    if rule.softcap is None and not windowed and not _is_product_faster(q, span):
        return _fused(q, k, v, rule, mask, bias)
    outs: list[Tensor] = []
    block = _BLOCKS[length > 2 * _BLOCKS[0]]
    for start in range(0, length, block):
        queries = range(start + offset, min(start + block, length) + offset)
        first = 0 if rule.window is None else max(0, queries.start - rule.window + 1)
        last = span if rule.window is None else min(span, queries.stop + rule.window - 1)
        keys = range(first, min(last, queries.stop) if rule.causal else last)
        part = None if bias is None else bias[:, start : start + len(queries), keys.start : keys.stop]
        rows = q[:, start : start + len(queries)]
        outs.append(
            _product(
                rows, k[:, keys.start : keys.stop], v[:, keys.start : keys.stop], rule, mask(queries, keys), part
            )
        )  # fmt: skip
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _is_product_faster(q: Tensor, span: int) -> bool:
    """Than torch's fused kernel: in bf16 on a CPU, two to three times (docs/log.md)."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return False
    return span <= _LONGEST_KEPT or not torch.is_grad_enabled()


def _product(q: Tensor, k: Tensor, v: Tensor, rule: Rule, seen: Tensor | None, bias: Tensor | None) -> Tensor:
    """torch's softmax sums in fp32 whatever the type, so scores stay in theirs: half the memory to walk through."""
    rows, length, num_q, width = q.shape
    span, num_kv = k.shape[1], k.shape[2]
    group = num_q // num_kv
    more = -span % _ALIGNED if span > _ALIGNED and q.dtype != torch.float32 else 0
    queries = q.view(rows, length, num_kv, group, width).permute(0, 2, 3, 1, 4)  # (B, K, H/K, T, E)
    queries = queries.reshape(rows * num_kv, group * length, width)
    keys, values = (nn.functional.pad(x.transpose(1, 2), (0, 0, 0, more)).flatten(0, 1) for x in (k, v))  # (B·K, S, E)
    closed = None if seen is None else _closed(seen, q.dtype, more)
    if closed is None and more:
        closed = _closed(torch.ones(length, span, dtype=torch.bool, device=q.device), q.dtype, more)
    is_plain = rule.softcap is None and bias is None
    if is_plain and closed is not None and closed.dim() == 2:
        scores = torch.baddbmm(closed.repeat(group, 1), queries, keys.transpose(1, 2), alpha=rule.scale)
        scores = scores.view(rows, num_q, length, span + more)
    else:
        scores = torch.bmm(queries * rule.scale, keys.transpose(1, 2)).view(rows, num_q, length, span + more)
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores.float() / rule.softcap)
        if bias is not None:
            scores = scores.float() + nn.functional.pad(bias.float(), (0, more))
        if closed is not None:
            scores = scores + closed  # filling by mask is many times slower in bf16
    weights = torch.softmax(scores, dim=-1).to(q.dtype)
    if rule.dropout:
        weights = nn.functional.dropout(weights, rule.dropout)
    mixed = torch.bmm(weights.view(rows * num_kv, group * length, span + more), values)
    mixed = mixed.view(rows, num_kv, group, length, -1).permute(0, 3, 1, 2, 4)
    return mixed.reshape(rows, length, num_q, -1)  # (B, T, H, E)


def _closed(seen: Tensor, dtype: torch.dtype = torch.float32, more: int = 0) -> Tensor:
    """What is added to scores: 0 where seen, -inf elsewhere, and at ``more`` keys there for the kernel only."""
    closed = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf")).to(dtype)
    return nn.functional.pad(closed, (0, more), value=float("-inf"))


def _fused(q: Tensor, k: Tensor, v: Tensor, rule: Rule, mask: Mask, bias: Tensor | None) -> Tensor:
    length, span = q.shape[1], k.shape[1]
    queries = range(span - length, span) if rule.causal else range(length)
    seen = mask(queries, range(span))
    simple = rule.causal and span == length and bias is None and (seen is None or seen.dim() == 2)
    simple = simple and (rule.window is None or rule.window >= span)
    table = None if simple else seen
    if bias is not None:
        table = bias if seen is None else bias + _closed(seen)
        table = table.to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T, E)
    mixed = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=table, dropout_p=rule.dropout, is_causal=simple, scale=rule.scale, enable_gqa=True
    )
    return mixed.transpose(1, 2)
