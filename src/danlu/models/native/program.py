"""Writes down a tower and its head as a list of operations. Knows networks, and no tokens, pages or threads."""

from __future__ import annotations

from torch import nn

from danlu.models.attention import Attention, AttentionConfig, CrossAttention
from danlu.models.block import Branch
from danlu.models.experts import Experts
from danlu.models.feedforward import FeedForward, GatedFeedForward
from danlu.models.heads.lm import LMHead
from danlu.models.native.feedforward import write_experts, write_feedforward
from danlu.models.native.kernels import Kernels
from danlu.models.native.memory import write_memory
from danlu.models.native.structs import Code
from danlu.models.native.unsupported import Unsupported, blocks_of, why_not
from danlu.models.native.writer import LOGITS, MIXED, NORMED, OUT, STREAM, WIDE, Program, Writer
from danlu.models.network import Tower
from danlu.models.product import Rule


def write_program(
    kernels: Kernels, tower: Tower, head: nn.Module | None = None, *, shared_pages: bool = False, releases: bool = False
) -> Program:  # fmt: skip
    """A tower, and its language-model head. With ``shared_pages`` all layers keep their keys in the same pages, one
    after another: for rows that are read once. With ``releases`` torch's copy of each linear goes as soon as it is
    packed; only this program can run the network then. Raises Unsupported, before a weight was packed."""
    if reason := why_not(tower, head):
        raise Unsupported(reason)
    writer = _TowerWriter(Writer(kernels, releases=releases), tower, shared_pages)
    writer.stack()
    writer.program.memory = write_memory(kernels, tower, releases=releases)
    if head is not None:
        assert isinstance(head, LMHead)
        writer.head(head)
    return writer.program


class _TowerWriter:
    """Goes through a tower, layer after layer."""

    def __init__(self, writer: Writer, tower: Tower, shared_pages: bool) -> None:
        self.program = writer.program
        self._writer = writer
        self._tower = tower
        self._shared_pages = shared_pages
        self._width = tower.stack.config.width
        for buffer in (STREAM, NORMED, OUT):
            writer.widen(buffer, self._width)
        self.program.rotaries = list(tower.stack._rotaries)

    def stack(self) -> None:
        """All blocks, the tokens that are asked for, and the last norm."""
        for number, block in enumerate(blocks_of(self._tower)):
            name = f"stack.blocks.{number}"
            for kind, branch in (("mixer", block.mixer), ("cross", block.cross), ("feedforward", block.feedforward)):
                if branch is not None:
                    self._branch(branch, f"{name}.{kind}", number)
        self._writer.op(Code.GATHER, STREAM, OUT, count=self._width)
        if self._tower.stack.norm is not None:
            self._writer.norm(self._tower.stack.norm, OUT, OUT)
        self.program.num_body = len(self.program.ops)

    def head(self, head: LMHead) -> None:
        """Logits of the tokens that are asked for."""
        source, config = OUT, head.config
        if config.scale != 1.0:
            self._writer.op(Code.SCALE, OUT, NORMED, count=self._width, scale=config.scale)
            source = NORMED
        width = self._writer.product(head.linear, "head.linear", source, LOGITS)
        if config.softcap is not None:
            self._writer.op(Code.SOFTCAP, LOGITS, LOGITS, count=width, scale=config.softcap)

    def _branch(self, branch: Branch, name: str, layer: int) -> None:
        source = STREAM
        if branch.input_norm is not None:
            self._writer.norm(branch.input_norm, STREAM, NORMED)
            source = NORMED
        target, adds = (STREAM, 1) if branch.output_norm is None else (NORMED, 0)
        inner, inner_name = branch.inner, f"{name}.inner"
        if isinstance(inner, Experts):
            write_experts(self._writer, inner, inner_name, source, target, adds)
        else:
            if isinstance(inner, (Attention, CrossAttention)):
                self._attention(inner, inner_name, source, 0 if self._shared_pages else layer)
                last, last_name = inner.out, f"{inner_name}.out"
            else:
                assert isinstance(inner, (FeedForward, GatedFeedForward))
                write_feedforward(self._writer, inner, inner_name, source)
                last, last_name = inner.down, f"{inner_name}.down"
            self._writer.product(last, last_name, MIXED, target, adds=adds)
        if branch.output_norm is not None:
            self._writer.norm(branch.output_norm, NORMED, NORMED)
            self._writer.op(Code.ADD, NORMED, STREAM, count=self._width)
        if branch.sum_norm is not None:
            self._writer.norm(branch.sum_norm, STREAM, STREAM)

    def _attention(self, inner: Attention | CrossAttention, name: str, source: int, layer: int) -> None:
        """Up to the mixed values."""
        config, program = inner.config, self.program
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        program.most_heads = max(program.most_heads, heads)
        program.fewest_kv_heads = min(program.fewest_kv_heads, kv_heads)
        program.most_head_width = max(program.most_head_width, width)
        program.most_kv_width = max(program.most_kv_width, kv_heads * width)
        self._writer.widen(MIXED, heads * width)
        if isinstance(inner, CrossAttention):
            self._writer.product(inner.q, f"{name}.q", source, WIDE)
        else:
            self._writer.product(inner.qkv, f"{name}.qkv", source, WIDE)
            self._positions_and_norms(inner, config)
            self._writer.op(
                Code.STORE, WIDE, WIDE, first=heads * width, width=width, kv_heads=kv_heads, layer=layer,
                heads=heads,
            )  # fmt: skip
        rule: Rule = config.rule
        is_cross = isinstance(inner, CrossAttention)
        self._writer.op(
            Code.ATTEND, WIDE, MIXED, width=width, heads=heads, kv_heads=kv_heads, layer=layer,
            scale=rule.scale, softcap=rule.softcap or 0.0, cross=int(is_cross),
            causal=int(rule.causal and not is_cross), window=0 if is_cross else rule.window or 0,
        )  # fmt: skip

    def _positions_and_norms(self, inner: Attention, config: AttentionConfig) -> None:
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        if config.qk_norm is not None:
            num_q, num_k = (1, 1) if config.qk_norm == "all" else (heads, kv_heads)
            self._writer.norm(inner.q_norm, WIDE, WIDE, heads=num_q)
            self._writer.norm(inner.k_norm, WIDE, WIDE, first=heads * width, heads=num_k)
        if config.rotary is not None:
            self._writer.op(
                Code.ROTATE, WIDE, WIDE, count=width, heads=heads + kv_heads, width=config.rotary.width,
                table=self.program.rotaries.index(config.rotary),
            )  # fmt: skip
