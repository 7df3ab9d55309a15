"""Writes down feed-forward layers, plain ones and those of experts. Knows no attention and no residual stream."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from danlu.models.experts import Experts
from danlu.models.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from danlu.models.native.structs import ACTIVATION_KINDS, Code
from danlu.models.native.writer import CHOSEN, CHOSEN_MIXED, CHOSEN_WIDE, MIXED, OUT, ROUTED, WIDE, Writer


def write_feedforward(writer: Writer, inner: FeedForward | GatedFeedForward, name: str, source: int) -> None:
    """Up to what goes into the last product, in MIXED."""
    kind = _activation_kind(inner.activation)
    if isinstance(inner, GatedFeedForward):
        width = writer.product(inner.gate_up, f"{name}.gate_up", source, WIDE) // 2
        writer.op(Code.GATE, WIDE, MIXED, count=width, kind=kind)
    else:
        width = writer.product(inner.up, f"{name}.up", source, WIDE)
        writer.op(Code.ACTIVATE, WIDE, MIXED, count=width, kind=kind)
    writer.widen(MIXED, width)


def write_experts(writer: Writer, inner: Experts, name: str, source: int, target: int, adds: int) -> None:
    """The whole layer. ``source`` is read to the end and ``target`` written last: they may be the same."""
    config, program = inner.config, writer.program
    numbers = {"experts": config.num_experts, "top_k": config.top_k}
    program.most_choices = max(program.most_choices, config.top_k)
    program.most_experts = max(program.most_experts, config.num_experts)
    writer.router(inner.router, inner.shared_gate, source)
    writer.op(Code.ROUTE, ROUTED, ROUTED, normalise=int(config.normalise), **numbers)
    writer.op(Code.SORT, ROUTED, ROUTED, capacity=config.capacity or 0, **numbers)
    outputs = writer.grouped(inner.gate_up if config.gated else inner.up, source, CHOSEN_WIDE, numbers)
    inner_width = outputs // 2 if config.gated else outputs
    writer.widen(CHOSEN_MIXED, inner_width)
    writer.op(
        Code.GATE if config.gated else Code.ACTIVATE, CHOSEN_WIDE, CHOSEN_MIXED, count=inner_width, by_choice=1,
        kind=_activation_kind(inner.activation), **numbers,
    )  # fmt: skip
    width = writer.grouped(inner.down, CHOSEN_MIXED, CHOSEN, numbers)
    if inner.shared is not None:
        assert isinstance(inner.shared, (FeedForward, GatedFeedForward))
        write_feedforward(writer, inner.shared, f"{name}.shared", source)
        writer.product(inner.shared.down, f"{name}.shared.down", MIXED, OUT)
        if inner.shared_gate is not None:
            writer.op(Code.WEIGH, ROUTED, OUT, first=config.num_experts, count=width)
    writer.op(Code.COMBINE, CHOSEN, target, count=width, adds=adds, **numbers)
    if inner.shared is not None:
        writer.op(Code.ADD, OUT, target, count=width)


def _activation_kind(function: Callable[[Tensor], Tensor]) -> int:
    return next(ACTIVATION_KINDS[word] for word, known in ACTIVATIONS.items() if known is function)
