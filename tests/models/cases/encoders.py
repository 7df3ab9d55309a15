"""Encoders: what they read is a vector a token, or a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from danlu.models.heads.embed import EmbedHead
from danlu.models.model import Model
from tests.models.case import Case, Tokens

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ROBERTA = {**SIZES, "pad_token_id": 1, "type_vocab_size": 1}
DISTILBERT = {
    "vocab_size": 100, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40
}  # fmt: skip
MODERNBERT = {
    **SIZES, "num_hidden_layers": 5, "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip


class Encoded(Tokens):
    """What heads of encoders give. No row has the padding id, by which RoBERTa tells positions."""

    def rows(self, case: Case) -> list[list[int]]:
        return [[i + 1 if i == case.pad else i for i in row] for row in super().rows(case)]


class First(Encoded):
    """Heads that read the first token, which transformers takes for the first place of a row, padding or not."""

    def theirs(self, case: Case, peer: Any, rows: Any, side: Any) -> list[Tensor]:
        if side == "left":
            return [super(First, self).theirs(case, peer, [row], side)[0] for row in rows]
        return super().theirs(case, peer, rows, side)


class Pooled(Encoded):
    """Bare encoders with a pooler: one vector a row."""

    @torch.no_grad()
    def theirs(self, case: Case, peer: Any, rows: Any, side: Any) -> list[Tensor]:
        return [peer.pooler(row.unsqueeze(0))[0] for row in super().theirs(case, peer, rows, side)]

    @torch.no_grad()
    def ours(self, model: Model, rows: Any) -> list[Tensor]:
        lengths, head = [len(row) for row in rows], model.network.head
        assert isinstance(head, EmbedHead)
        return list(head(model.network.rows(torch.tensor([i for row in rows for i in row]), lengths), lengths))


class Typed(Encoded):
    """Every token after the third is of the second type."""

    @torch.no_grad()
    def theirs(self, case: Case, peer: Any, rows: Any, side: Any) -> list[Tensor]:
        def answer(row: list[int]) -> Tensor:
            types = (torch.arange(len(row)) > 2).long()
            return peer(input_ids=torch.tensor([row]), token_type_ids=types.unsqueeze(0)).logits[0]

        return [answer(row) for row in rows]

    @torch.no_grad()
    def ours(self, model: Model, rows: Any) -> list[Tensor]:
        lengths = [len(row) for row in rows]
        types = torch.cat([torch.arange(length) > 2 for length in lengths]).long()
        hidden = model.network.rows(torch.tensor([i for row in rows for i in row]), lengths, types=types)
        assert model.network.head is not None
        return list(model.network.head(hidden).split(lengths))


def encoder(
    config: type[PretrainedConfig], sizes: dict[str, Any], peer: Any, *, compare: Encoded | None = None, **changes: Any
) -> Case:
    """An encoder with one head."""
    numbers = {**sizes, **changes}
    if compare is None:
        compare = First() if "ForSequence" in peer.__name__ else Encoded()
    return Case(
        config=config, peer=peer, numbers=numbers, compare=compare, pad=numbers.get("pad_token_id", 0),
        position_ids=not issubclass(config, RobertaConfig | XLMRobertaConfig),
    )  # fmt: skip


CASES: dict[str, Case] = {
    "bert": encoder(BertConfig, SIZES, BertForMaskedLM, hidden_act="gelu_new"),
    "bert-types": encoder(BertConfig, SIZES, BertForMaskedLM, compare=Typed()),
    "bert-classify": encoder(BertConfig, SIZES, BertForSequenceClassification, num_labels=3),
    "bert-tag": encoder(BertConfig, SIZES, BertForTokenClassification, num_labels=5),
    "bert-model": encoder(BertConfig, SIZES, BertModel, compare=Pooled()),
    "roberta": encoder(RobertaConfig, ROBERTA, RobertaForMaskedLM),
    "roberta-classify": encoder(RobertaConfig, ROBERTA, RobertaForSequenceClassification, num_labels=3),
    "roberta-tag": encoder(RobertaConfig, ROBERTA, RobertaForTokenClassification, num_labels=3),
    "roberta-model": encoder(RobertaConfig, {**ROBERTA, "pad_token_id": 3}, RobertaModel, compare=Pooled()),
    "xlm-roberta-rank": encoder(XLMRobertaConfig, ROBERTA, XLMRobertaForSequenceClassification, num_labels=1),
    "distilbert": encoder(DistilBertConfig, DISTILBERT, DistilBertForMaskedLM),
    "distilbert-model": encoder(DistilBertConfig, DISTILBERT, DistilBertModel),
    "distilbert-classify": encoder(DistilBertConfig, DISTILBERT, DistilBertForSequenceClassification),
    "distilbert-tag": encoder(DistilBertConfig, DISTILBERT, DistilBertForTokenClassification, num_labels=3),
    "modernbert": encoder(ModernBertConfig, MODERNBERT, ModernBertForMaskedLM),
    "modernbert-shifted": encoder(
        ModernBertConfig, MODERNBERT, ModernBertForMaskedLM,
        norm_bias=True, mlp_bias=True, attention_bias=True, classifier_bias=True, decoder_bias=False,
    ),
    "modernbert-first": encoder(ModernBertConfig, MODERNBERT, ModernBertForSequenceClassification, num_labels=3),
    "modernbert-mean": encoder(
        ModernBertConfig, MODERNBERT, ModernBertForSequenceClassification, num_labels=3, classifier_pooling="mean",
        compare=Encoded(),
    ),
    "modernbert-tag": encoder(ModernBertConfig, MODERNBERT, ModernBertForTokenClassification, num_labels=3),
    "modernbert-model": encoder(ModernBertConfig, MODERNBERT, ModernBertModel),
}  # fmt: skip
