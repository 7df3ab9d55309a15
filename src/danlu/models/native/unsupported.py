"""What of a network the kernels do not know, in words for a log. Knows no operations."""

from __future__ import annotations

from torch import Tensor, nn

from danlu.models.attention import Attention, CrossAttention
from danlu.models.block import Block
from danlu.models.experts import Experts
from danlu.models.feedforward import FeedForward, GatedFeedForward
from danlu.models.grouped import GroupedLinear, PackedGroupedLinear
from danlu.models.heads.lm import LMHead
from danlu.models.linear import FusedLinear, Linear, PackedLinear
from danlu.models.native.kernels import KINDS
from danlu.models.network import Tower
from danlu.models.quant import Int8GroupedLinear, Int8Linear

_LARGEST = 1 << 24
"""Channels or outputs that 32-bit offsets reach with much to spare."""
_MOST_EXPERTS = 4096
"""Experts of a layer: each is at least one task of a phase."""
_LINEARS = (nn.Linear, Linear, FusedLinear, PackedLinear, Int8Linear)
_GROUPED = (GroupedLinear, PackedGroupedLinear, Int8GroupedLinear)


class Unsupported(Exception):
    """What of a network the kernels do not know; the text is for a log."""


def why_not(tower: Tower, head: nn.Module | None = None) -> str | None:
    """What the kernels do not know of a network; None when it can be written down."""
    if next(tower.parameters()).device.type != "cpu":
        return "its weights are not on the CPU"
    for number, block in enumerate(blocks_of(tower)):
        for branch in (block.mixer, block.cross, block.feedforward):
            if branch is not None and (reason := _inner_reason(branch.inner)):
                return f"layer {number}: {reason}"
    if any(kind.by_length for kind in tower.stack._rotaries):
        return "its positions depend on how long a row is"
    if head is None:
        return None
    if not isinstance(head, LMHead):
        return f"its head is {type(head).__name__}"
    return "its head has a transform" if head.transform is not None else _linear_reason(head.linear)


def blocks_of(tower: Tower) -> list[Block]:
    return [block for block in tower.stack.blocks.children() if isinstance(block, Block)]


def _inner_reason(inner: nn.Module) -> str | None:
    if isinstance(inner, Experts):
        if inner.config.num_experts > _MOST_EXPERTS:
            return f"it has {inner.config.num_experts} experts"
        linears: list[nn.Module] = [inner.down, inner.gate_up if inner.config.gated else inner.up]
        if inner.shared is not None and (reason := _inner_reason(inner.shared)):
            return reason
    elif isinstance(inner, (FeedForward, GatedFeedForward)):
        linears = [inner.down, inner.up if isinstance(inner, FeedForward) else inner.gate_up]
    elif isinstance(inner, (Attention, CrossAttention)):
        if inner.config.gated:
            return "its attention is gated"
        linears = [inner.out, *([inner.q, inner.kv] if isinstance(inner, CrossAttention) else [inner.qkv])]
    else:
        return f"{type(inner).__name__} is not written in C"
    return next((reason for linear in linears if (reason := _linear_reason(linear))), None)


def _linear_reason(linear: nn.Module) -> str | None:
    if type(linear) not in (*_LINEARS, *_GROUPED):
        return f"a layer is {type(linear).__name__}"
    if isinstance(linear, (PackedLinear, PackedGroupedLinear)):
        packed = linear._packed if isinstance(linear, PackedLinear) else linear._packed[0]
        kind, (rows, columns) = packed.dtype, packed.shape
    else:
        weight: Tensor = linear.weight  # pyright: ignore[reportAssignmentType]
        kind, (rows, columns) = weight.dtype, weight.shape[-2:]
    if kind not in KINDS:
        return f"weights are {kind}"
    if max(rows, columns) > _LARGEST:
        return f"a weight is {rows} by {columns}"
    return None
