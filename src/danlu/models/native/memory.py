"""Writes down what a decoder keeps of an encoder's hidden states: keys and values of every layer's cross-attention.

Knows no encoder. What it stores are the own pages of the pass that runs it, so that pass is given those of the memory.
"""

from __future__ import annotations

from danlu.models.attention import CrossAttention
from danlu.models.native.kernels import Kernels
from danlu.models.native.structs import Code
from danlu.models.native.unsupported import blocks_of
from danlu.models.native.writer import STREAM, WIDE, Program, Writer
from danlu.models.network import Tower


def write_memory(kernels: Kernels, tower: Tower, *, releases: bool) -> Program | None:
    """A program over hidden states in STREAM; None for a tower without cross-attention. ``releases`` as in
    ``write_program``, which has looked at the weights before."""
    writer = Writer(kernels, releases=releases)
    for number, block in enumerate(blocks_of(tower)):
        if block.cross is None:
            continue
        inner = block.cross.inner
        assert isinstance(inner, CrossAttention)
        writer.product(inner.kv, f"stack.blocks.{number}.cross.inner.kv", STREAM, WIDE)
        writer.widen(STREAM, writer.program.product_shapes[-1][1])
        config = inner.config
        writer.op(Code.STORE, WIDE, WIDE, width=config.head_width, kv_heads=config.num_kv_heads, layer=number)
    writer.program.num_body = len(writer.program.ops)
    return writer.program if writer.program.ops else None
