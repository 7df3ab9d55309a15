"""Encoder-decoders: a source is read, an answer is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartModel,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
)

from danlu.models.attend import PackedAttend, row_positions
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from tests.models.case import Case, Side, Tokens, stepped
from tests.models.peer import some_ids

T5_SIZES: dict[str, Any] = {
    "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
BART_SIZES: dict[str, Any] = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, "max_position_embeddings": 40,
}  # fmt: skip
MARIAN = {"pad_token_id": 94, "decoder_start_token_id": 94, "eos_token_id": 0}


class Pairs(Tokens):
    """A source and a target a row; what is compared is what the decoder says at each place of the target."""

    def rows(self, case: Case) -> list[Any]:
        targets = super().rows(case)
        sources = [some_ids(length, seed=100 + length, vocabulary=case.vocabulary) for length in (5, 17, 3)]
        return list(zip(sources, targets, strict=True))

    @torch.no_grad()
    def theirs(self, case: Case, peer: Any, rows: Sequence[Any], side: Side) -> list[Tensor]:
        if side == "left" and not case.position_ids:  # places are counted from the first column, padding or not
            return [self.theirs(case, peer, [row], "right")[0] for row in rows]
        source, source_mask = padded([source for source, _ in rows], case.pad, side)
        target, target_mask = padded([target for _, target in rows], case.pad, side)
        out = peer(
            input_ids=source,
            attention_mask=source_mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
        )
        answer = out.logits if hasattr(out, "logits") else out.last_hidden_state
        return [row[mask.bool()] for row, mask in zip(answer, target_mask, strict=True)]

    @torch.no_grad()
    def ours(self, model: Model, rows: Sequence[Any]) -> list[Tensor]:
        network, lengths = model.network, [len(target) for _, target in rows]
        attend = PackedAttend(lengths, memory=memory_of(model, rows))
        hidden = network(torch.tensor([i for _, row in rows for i in row]), row_positions(lengths), attend)
        return list((hidden if network.head is None else network.logits(hidden)).split(lengths))

    @torch.no_grad()
    def stepped(self, model: Model, rows: Sequence[Any]) -> list[Tensor]:
        return stepped(model, [target for _, target in rows], [source for source, _ in rows])


def memory_of(model: Model, rows: Sequence[Any]) -> Any:
    """What the encoder makes of the sources."""
    assert isinstance(model.network, EncoderDecoder)
    return model.network.encode(torch.tensor([i for row, _ in rows for i in row]), [len(row) for row, _ in rows])


def padded(rows: Sequence[list[int]], pad: int, side: Side) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each."""
    longest = max(len(row) for row in rows)
    spare = [[pad] * (longest - len(row)) for row in rows]
    ids = [s + row if side == "left" else row + s for row, s in zip(rows, spare, strict=True)]
    mask = [
        [0] * len(s) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(s)
        for row, s in zip(rows, spare, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqCase(Case):
    """Their bias of the logits is a buffer, and a head may be freed from the embedding."""

    compare: Tokens = field(default_factory=Pairs)
    untied: bool = False
    """Whether the head has weights of its own."""

    def make(self, seed: int = 0) -> PreTrainedModel:
        peer: Any = super().make(seed)
        if hasattr(peer, "final_logits_bias"):
            peer.final_logits_bias.copy_(torch.randn_like(peer.final_logits_bias))
        if self.untied:
            peer.lm_head.weight = torch.nn.Parameter(torch.randn_like(peer.lm_head.weight))
        return peer


def t5(peer: Any = T5ForConditionalGeneration, config: Any = T5Config, untied: bool = False, **changes: Any) -> Case:
    """T5 of some size."""
    compare = Pairs() if peer is not T5EncoderModel else Tokens()
    return Seq2SeqCase(config=config, peer=peer, numbers={**T5_SIZES, **changes}, compare=compare, untied=untied)


def bart(peer: Any = BartForConditionalGeneration, config: Any = BartConfig, **changes: Any) -> Case:
    """BART of some size."""
    return Seq2SeqCase(config=config, peer=peer, numbers={**BART_SIZES, **changes}, position_ids=False, vocabulary=94)


CASES: dict[str, Case] = {
    "t5": t5(),
    "t5-1.1": t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, untied=True),
    "t5-silu": t5(feed_forward_proj="gated-silu"),
    "t5-model": t5(T5Model),
    "t5-encoder": t5(T5EncoderModel),
    "mt5": t5(MT5ForConditionalGeneration, MT5Config, untied=True),
    "bart": bart(),
    "bart-model": bart(BartModel, scale_embedding=True, activation_function="relu"),
    "mbart": bart(MBartForConditionalGeneration, MBartConfig, scale_embedding=True),
    "marian": bart(MarianMTModel, MarianConfig, **MARIAN, scale_embedding=True, activation_function="swish"),
    "marian-two-vocabularies": bart(
        MarianMTModel, MarianConfig, **MARIAN, share_encoder_decoder_embeddings=False, decoder_vocab_size=95
    ),
}
