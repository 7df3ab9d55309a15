"""Writes down a tower and its head as a list of operations. Knows networks, and no tokens, pages or threads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from danlu.models.attention import Attention, AttentionConfig, CrossAttention
from danlu.models.block import Block, Branch
from danlu.models.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from danlu.models.heads.lm import LMHead
from danlu.models.linear import FusedLinear, Linear, PackedLinear
from danlu.models.native.kernels import KINDS, Kernels
from danlu.models.native.structs import (
    ACTIVATION_KINDS,
    BYTES,
    GROUP,
    LAYER_NORM,
    RMS_NORM,
    Code,
    Op,
)
from danlu.models.network import Tower
from danlu.models.norms import RMSNorm
from danlu.models.positions import Rotary, RotaryConfig
from danlu.models.product import Rule
from danlu.models.quant import Int8Linear

STREAM, NORMED, WIDE, MIXED, OUT, LOGITS = range(6)
"""Buffers of a pass: the residual stream; a branch's input or output; projections; what goes into the last product of
a branch; tokens that are asked for; their logits."""
NUM_BUFFERS = 6
_LARGEST = 1 << 24
"""Channels or outputs that 32-bit offsets reach with much to spare."""


class Unsupported(Exception):
    """What of a network the kernels do not know; the text is for a log."""


@dataclass
class Program:
    """Operations of a tower, then those of its head."""

    ops: list[Op] = field(default_factory=list)
    num_body: int = 0
    """Operations that end with hidden states."""
    widths: list[int] = field(default_factory=lambda: [0] * NUM_BUFFERS)
    """Channels of each buffer."""
    prepared_bytes: int = 4
    """Of the longest row that a product reads."""
    most_groups: int = 1
    """Of 8-bit rows: groups of the longest."""
    rotaries: list[RotaryConfig] = field(default_factory=list)
    """Kinds of rotary positions, by their number in operations."""
    products: list[str] = field(default_factory=list)
    """Names of the linears, by their number in operations."""
    product_shapes: list[tuple[int, int]] = field(default_factory=list)
    """Outputs and inputs of each."""
    most_heads: int = 1
    """Query heads of a layer."""
    fewest_kv_heads: int = 1 << 30
    """Key/value heads of a layer."""
    most_head_width: int = 1
    """E of a layer."""
    most_kv_width: int = 1
    """Key channels of a layer."""
    kept: list[Tensor] = field(default_factory=list)
    """What operations point to."""

    def freeze(self) -> ctypes.Array[Op]:
        """The operations side by side."""
        return (Op * len(self.ops))(*self.ops)

    @property
    def has_head(self) -> bool:
        """Whether logits are made too."""
        return self.num_body < len(self.ops)

    def size_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.nbytes for tensor in self.kept)


def write_program(
    kernels: Kernels, tower: Tower, head: nn.Module | None = None, *, shared_pages: bool = False, releases: bool = False
) -> Program:  # fmt: skip
    """A tower, and its language-model head. With ``shared_pages`` all layers keep their keys in the same pages, one
    after another: for rows that are read once. With ``releases`` torch's copy of each linear goes as soon as it is
    packed; only this program can run the network then. Raises Unsupported, before a weight was packed."""
    if reason := why_not(tower, head):
        raise Unsupported(reason)
    writer = _Writer(kernels, tower, shared_pages, releases)
    writer.stack()
    if head is not None:
        assert isinstance(head, LMHead)
        writer.head(head)
    return writer.program


def why_not(tower: Tower, head: nn.Module | None = None) -> str | None:
    """What the kernels do not know of a network; None when it can be written down."""
    if next(tower.parameters()).device.type != "cpu":
        return "its weights are not on the CPU"
    for number, block in enumerate(_blocks(tower)):
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


def _blocks(tower: Tower) -> list[Block]:
    return [block for block in tower.stack.blocks.children() if isinstance(block, Block)]


def _inner_reason(inner: nn.Module) -> str | None:
    if isinstance(inner, (FeedForward, GatedFeedForward)):
        linears: list[nn.Module] = [inner.down, inner.up if isinstance(inner, FeedForward) else inner.gate_up]
    elif isinstance(inner, (Attention, CrossAttention)):
        if inner.config.gated:
            return "its attention is gated"
        linears = [inner.out, *([inner.q, inner.kv] if isinstance(inner, CrossAttention) else [inner.qkv])]
    else:
        return f"{type(inner).__name__} is not written in C"
    return next((reason for linear in linears if (reason := _linear_reason(linear))), None)


def _linear_reason(linear: nn.Module) -> str | None:
    if type(linear) not in (nn.Linear, Linear, FusedLinear, PackedLinear, Int8Linear):
        return f"a layer is {type(linear).__name__}"
    if isinstance(linear, PackedLinear):
        kind, (rows, columns) = linear._packed.dtype, (linear.out_features, linear.in_features)
    else:
        weight: Tensor = linear.weight  # pyright: ignore[reportAssignmentType]
        kind, (rows, columns) = weight.dtype, weight.shape
    if kind not in KINDS:
        return f"weights are {kind}"
    if max(rows, columns) > _LARGEST:
        return f"a weight is {rows} by {columns}"
    return None


class _Writer:
    """Appends operations to a program."""

    def __init__(self, kernels: Kernels, tower: Tower, shared_pages: bool, releases: bool) -> None:
        self.program = Program()
        self._kernels = kernels
        self._tower = tower
        self._shared_pages = shared_pages
        self._releases = releases
        self._width = tower.stack.config.width
        self._packed: dict[int, Tensor] = {}
        for buffer in (STREAM, NORMED, OUT):
            self.program.widths[buffer] = self._width
        self.program.rotaries = list(tower.stack._rotaries)

    def stack(self) -> None:
        """All blocks, the tokens that are asked for, and the last norm."""
        for number, block in enumerate(_blocks(self._tower)):
            name = f"stack.blocks.{number}"
            for kind, branch in (("mixer", block.mixer), ("cross", block.cross), ("feedforward", block.feedforward)):
                if branch is not None:
                    self._branch(branch, f"{name}.{kind}", number)
        self._op(Code.GATHER, STREAM, OUT, count=self._width)
        if self._tower.stack.norm is not None:
            self._norm(self._tower.stack.norm, OUT, OUT)
        self.program.num_body = len(self.program.ops)

    def head(self, head: LMHead) -> None:
        """Logits of the tokens that are asked for."""
        source, config = OUT, head.config
        if config.scale != 1.0:
            self._op(Code.SCALE, OUT, NORMED, count=self._width, scale=config.scale)
            source = NORMED
        width = self._product(head.linear, "head.linear", source, LOGITS)
        if config.softcap is not None:
            self._op(Code.SOFTCAP, LOGITS, LOGITS, count=width, scale=config.softcap)

    def _branch(self, branch: Branch, name: str, layer: int) -> None:
        source = STREAM
        if branch.input_norm is not None:
            self._norm(branch.input_norm, STREAM, NORMED)
            source = NORMED
        inner = branch.inner
        if isinstance(inner, (Attention, CrossAttention)):
            self._attention(inner, f"{name}.inner", source, 0 if self._shared_pages else layer)
            last, name = inner.out, f"{name}.inner.out"
        else:
            assert isinstance(inner, (FeedForward, GatedFeedForward))
            self._feedforward(inner, f"{name}.inner", source)
            last, name = inner.down, f"{name}.inner.down"
        if branch.output_norm is None:
            self._product(last, name, MIXED, STREAM, adds=1)
        else:
            self._product(last, name, MIXED, NORMED)
            self._norm(branch.output_norm, NORMED, NORMED)
            self._op(Code.ADD, NORMED, STREAM, count=self._width)
        if branch.sum_norm is not None:
            self._norm(branch.sum_norm, STREAM, STREAM)

    def _attention(self, inner: Attention | CrossAttention, name: str, source: int, layer: int) -> None:
        """Up to the mixed values."""
        config, program = inner.config, self.program
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        program.most_heads = max(program.most_heads, heads)
        program.fewest_kv_heads = min(program.fewest_kv_heads, kv_heads)
        program.most_head_width = max(program.most_head_width, width)
        program.most_kv_width = max(program.most_kv_width, kv_heads * width)
        self._widen(MIXED, heads * width)
        if isinstance(inner, CrossAttention):
            self._product(inner.q, f"{name}.q", source, WIDE)
        else:
            self._product(inner.qkv, f"{name}.qkv", source, WIDE)
            self._positions_and_norms(inner, config)
            self._op(
                Code.STORE, WIDE, WIDE, first=heads * width, width=width, kv_heads=kv_heads, layer=layer,
                heads=heads,
            )  # fmt: skip
        rule: Rule = config.rule
        is_cross = isinstance(inner, CrossAttention)
        self._op(
            Code.ATTEND, WIDE, MIXED, width=width, heads=heads, kv_heads=kv_heads, layer=layer,
            scale=rule.scale, softcap=rule.softcap or 0.0, cross=int(is_cross),
            causal=int(rule.causal and not is_cross), window=0 if is_cross else rule.window or 0,
        )  # fmt: skip

    def _positions_and_norms(self, inner: Attention, config: AttentionConfig) -> None:
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        if config.qk_norm is not None:
            num_q, num_k = (1, 1) if config.qk_norm == "all" else (heads, kv_heads)
            self._norm(inner.q_norm, WIDE, WIDE, heads=num_q)
            self._norm(inner.k_norm, WIDE, WIDE, first=heads * width, heads=num_k)
        if config.rotary is not None:
            self._op(
                Code.ROTATE, WIDE, WIDE, count=width, heads=heads + kv_heads, width=config.rotary.width,
                table=self.program.rotaries.index(config.rotary),
            )  # fmt: skip

    def _feedforward(self, inner: FeedForward | GatedFeedForward, name: str, source: int) -> None:
        kind = next(ACTIVATION_KINDS[word] for word, function in ACTIVATIONS.items() if function is inner.activation)
        if isinstance(inner, GatedFeedForward):
            width = self._product(inner.gate_up, f"{name}.gate_up", source, WIDE) // 2
            self._op(Code.GATE, WIDE, MIXED, count=width, kind=kind)
        else:
            width = self._product(inner.up, f"{name}.up", source, WIDE)
            self._op(Code.ACTIVATE, WIDE, MIXED, count=width, kind=kind)
        self._widen(MIXED, width)

    def _norm(self, norm: nn.Module, source: int, target: int, *, first: int = 0, heads: int = 1) -> None:
        assert isinstance(norm, (RMSNorm, nn.LayerNorm))
        is_rms = isinstance(norm, RMSNorm)
        self._op(
            Code.NORM, source, target, kind=RMS_NORM if is_rms else LAYER_NORM, first=first, target_first=first,
            count=norm.weight.shape[0], heads=heads, epsilon=norm.epsilon if is_rms else norm.eps,
            offset=1.0 if is_rms and norm.unit_offset else 0.0, scales=self._floats(norm.weight),
            bias=self._floats(getattr(norm, "bias", None)),
        )  # fmt: skip

    def _product(self, linear: nn.Module, name: str, source: int, target: int, *, adds: int = 0) -> int:
        """Gives the number of outputs."""
        weight: Tensor = linear.weight  # pyright: ignore[reportAssignmentType]
        outputs, inputs = weight.shape
        kind, program = KINDS[weight.dtype], self.program
        numbers: dict[str, Any] = {
            "count": inputs,
            "kind": kind,
            "product": len(program.products),
            "of_outs": int(program.num_body > 0),
        }
        program.products.append(name)
        program.product_shapes.append((outputs, inputs))
        program.prepared_bytes = max(program.prepared_bytes, -(-inputs * weight.element_size() // 4) * 4)
        self._widen(target, outputs)
        self._op(Code.PREPARE, source, source, **numbers)
        if kind == BYTES:
            scale: Tensor = linear.scale  # pyright: ignore[reportAssignmentType]
            numbers["scales"] = self._floats(scale.reshape(-1))
            program.most_groups = max(program.most_groups, -(-inputs // GROUP))
        packed = self._kernels.pack(weight)
        program.kept.append(packed)
        self._op(
            Code.PRODUCT, source, target, width=outputs, adds=adds, weight=packed.data_ptr(),
            bias=self._floats(getattr(linear, "bias", None)), **numbers,
        )  # fmt: skip
        if self._releases:
            _release(linear)
        return outputs

    def _op(self, code: Code, source: int, target: int, **numbers: Any) -> None:
        self.program.ops.append(Op(code=int(code), source=source, target=target, **numbers))

    def _floats(self, numbers: Tensor | None) -> int | None:
        if numbers is None:
            return None
        kept = numbers.detach().to(torch.float32).contiguous().clone()
        self.program.kept.append(kept)
        return kept.data_ptr()

    def _widen(self, buffer: int, channels: int) -> None:
        self.program.widths[buffer] = max(self.program.widths[buffer], channels)


def _release(linear: nn.Module) -> None:
    """Leave the shape of a weight and nothing else of it. A table that it shared with others stays with them."""
    if isinstance(linear, PackedLinear):
        linear._packed = linear._packed.to_dense().to("meta")
    elif isinstance(linear, Int8Linear):
        linear.weight = linear.weight.to("meta")
    else:
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)  # pyright: ignore


class Angles:
    """Cosines and sines of positions as the kernels read them, made for as many positions as were ever needed."""

    def __init__(self, kinds: list[RotaryConfig]) -> None:
        self._rotaries = [Rotary(kind) for kind in kinds]
        self.tables: list[Tensor] = []
        self._count = 0

    def reach(self, count: int) -> None:
        """Have tables of at least so many positions: (positions, turned channels), cosines first."""
        if count <= self._count or not self._rotaries:
            return
        self._count = 1 << max(9, (count - 1).bit_length())
        positions = torch.arange(self._count)
        self.tables = []
        for rotary in self._rotaries:
            cos, sin = rotary(positions, torch.float32)
            half = cos.shape[-1] // 2  # sines carry the sign of the half rotation in their first half
            self.tables.append(torch.cat([cos[:, 0, :half], sin[:, 0, half:]], dim=1).contiguous())


class Distances:
    """Biases of scores by distance as the kernels read them: (H, distances), the longest row's first."""

    def __init__(self, relative: nn.Module | None) -> None:
        self._relative = relative
        self.table: Tensor | None = None
        self.zero = 0

    def reach(self, count: int) -> None:
        """Have biases of distances below ``count``, both ways, and a page more for what is masked."""
        if self._relative is None or count <= self.zero:
            return
        self.zero = 1 << max(9, (count - 1).bit_length())
        found: Tensor = self._relative(torch.arange(-self.zero, self.zero + 64).unsqueeze(0))  # (H, 1, distances)
        self.table = found.squeeze(1).float().contiguous()
