"""Appends operations to a program and packs their weights. Knows linears and norms, and no blocks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from danlu.models.experts import Router
from danlu.models.grouped import PackedGroupedLinear
from danlu.models.linear import PackedLinear
from danlu.models.native.kernels import KINDS, Kernels
from danlu.models.native.structs import BYTES, GROUP, LAYER_NORM, RMS_NORM, Code, Op
from danlu.models.norms import RMSNorm
from danlu.models.positions import RotaryConfig
from danlu.models.quant import Int8GroupedLinear, Int8Linear

STREAM, NORMED, WIDE, MIXED, OUT, LOGITS, ROUTED, CHOSEN, CHOSEN_WIDE, CHOSEN_MIXED = range(10)
"""Buffers of a pass: the residual stream; a branch's input or output; projections; what goes into the last product of
a branch; tokens that are asked for, and before that what a shared expert says; their logits; logits of a router; rows
of choices as experts read and write them; their projections; what goes into the last product of experts."""
NUM_BUFFERS = 10


@dataclass
class Program:
    """Operations of a tower, then those of its head."""

    ops: list[Op] = field(default_factory=list)
    num_body: int = 0
    """Operations that end with hidden states."""
    widths: list[int] = field(default_factory=lambda: [0] * NUM_BUFFERS)
    """Channels of each buffer."""
    prepared_bytes: int = 4
    """Of the longest row that a product reads, or of all that a token has in it."""
    most_groups: int = 1
    """Of 8-bit rows: groups of the same."""
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
    most_choices: int = 1
    """Experts that a token of a layer goes through; 1 where there are none."""
    most_experts: int = 0
    """Experts of a layer."""
    kept: list[Tensor] = field(default_factory=list)
    """What operations point to."""
    memory: Program | None = None
    """What a decoder keeps of an encoder's hidden states."""

    def freeze(self) -> ctypes.Array[Op]:
        """The operations side by side."""
        return (Op * len(self.ops))(*self.ops)

    @property
    def has_head(self) -> bool:
        """Whether logits are made too."""
        return self.num_body < len(self.ops)

    def size_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.nbytes for tensor in self.kept) + (0 if self.memory is None else self.memory.size_bytes())


class Writer:
    """Appends operations to ``program``. With ``releases`` torch's copy of a weight goes when it was packed."""

    def __init__(self, kernels: Kernels, *, releases: bool) -> None:
        self.program = Program()
        self._kernels = kernels
        self._releases = releases

    def norm(self, norm: nn.Module, source: int, target: int, *, first: int = 0, heads: int = 1) -> None:
        """Each of ``heads`` parts by itself."""
        assert isinstance(norm, (RMSNorm, nn.LayerNorm))
        is_rms = isinstance(norm, RMSNorm)
        self.op(
            Code.NORM, source, target, kind=RMS_NORM if is_rms else LAYER_NORM, first=first, target_first=first,
            count=norm.weight.shape[0], heads=heads, epsilon=norm.epsilon if is_rms else norm.eps,
            offset=1.0 if is_rms and norm.unit_offset else 0.0, scales=self.floats(norm.weight),
            bias=self.floats(getattr(norm, "bias", None)),
        )  # fmt: skip

    def product(self, linear: nn.Module, name: str, source: int, target: int, *, adds: int = 0) -> int:
        """A product of each token, to which adapters add what they have for ``name``. Gives the number of outputs."""
        program = self.program
        numbers = {"product": len(program.products), "of_outs": int(program.num_body > 0)}
        read, weight = self._weights(linear)
        program.products.append(name)
        program.product_shapes.append((weight["width"], read["count"]))
        self.widen(target, weight["width"])
        self.op(Code.PREPARE, source, source, **read, **numbers)
        self.op(Code.PRODUCT, source, target, adds=adds, **read, **weight, **numbers)
        return weight["width"]

    def router(self, router: Router, gate: Router | None, source: int) -> None:
        """Logits of experts and, after them, the gate's, all in fp32."""
        parts = [router] if gate is None else [router, gate]
        weight = torch.cat([part.weight.detach().float() for part in parts])
        shifts = [torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach() for part in parts]
        packed = self._kernels.pack(weight)
        self.program.kept.append(packed)
        self.widen(ROUTED, weight.shape[0])
        self.op(
            Code.PRODUCT, source, ROUTED, count=weight.shape[1], kind=KINDS[weight.dtype], width=weight.shape[0],
            weight=packed.data_ptr(), bias=self.floats(torch.cat(shifts)), product=-1,
        )  # fmt: skip

    def grouped(self, linear: nn.Module, source: int, target: int, numbers: dict[str, int]) -> int:
        """A product of each choice with its expert; rows of STREAM or NORMED are given to their choices first."""
        read, weight = self._weights(linear, rows=numbers["top_k"])
        own = {**read, **numbers, "product": -1}
        if source in (STREAM, NORMED):
            self.op(Code.SPREAD, source, CHOSEN, **own)
            source = CHOSEN
        else:
            self.op(Code.PREPARE, source, source, by_choice=1, **own)
        self.widen(source, read["count"])
        self.widen(target, weight["width"])
        self.op(Code.EXPERTS, source, target, by_choice=1, **own, **weight)
        return weight["width"]

    def _weights(self, linear: nn.Module, rows: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """What reading the input of a product and the product itself are told; ``rows`` are those of a token."""
        weight: Tensor = linear.weight  # pyright: ignore[reportAssignmentType]
        (outputs, inputs), kind, program = weight.shape[-2:], KINDS[weight.dtype], self.program
        program.prepared_bytes = max(program.prepared_bytes, rows * (-(-inputs * weight.element_size() // 4) * 4))
        packed, scale = self._kernels.pack(weight), None
        program.kept.append(packed)
        if kind == BYTES:
            scale: Tensor | None = linear.scale  # pyright: ignore[reportAssignmentType]
            program.most_groups = max(program.most_groups, rows * -(-inputs // GROUP))
        told = {
            "width": outputs, "weight": packed.data_ptr(), "scales": self.floats(scale),
            "bias": self.floats(getattr(linear, "bias", None)),
        }  # fmt: skip
        if self._releases:
            _release(linear)
        return {"count": inputs, "kind": kind}, told

    def op(self, code: Code, source: int, target: int, **numbers: Any) -> None:
        """One operation; what is not named is 0."""
        self.program.ops.append(Op(code=int(code), source=source, target=target, **numbers))

    def floats(self, numbers: Tensor | None) -> int | None:
        """Where a copy in fp32 lies that the program keeps."""
        if numbers is None:
            return None
        kept = numbers.detach().to(torch.float32).contiguous().clone()
        self.program.kept.append(kept)
        return kept.data_ptr()

    def widen(self, buffer: int, channels: int) -> None:
        """Have at least so many channels in a buffer."""
        self.program.widths[buffer] = max(self.program.widths[buffer], channels)


def _release(linear: nn.Module) -> None:
    """Leave the shape of a weight and nothing else of it. A table that it shared with others stays with them."""
    if isinstance(linear, PackedLinear):
        linear._packed = linear._packed.to_dense().to("meta")
    elif isinstance(linear, PackedGroupedLinear):
        linear._packed = [packed.to_dense().to("meta") for packed in linear._packed]
    elif isinstance(linear, (Int8Linear, Int8GroupedLinear)):
        linear.weight = linear.weight.to("meta")
    else:
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)  # pyright: ignore
