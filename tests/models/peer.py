"""Tiny random models made and run by transformers: the independent reference for ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from danlu.models.model import Model
from tests.tiny import TEMPLATE, make_tokenizer


def save_llama(folder: Path, *, seed: int = 0, shard_size: str = "5GB", **changes: Any) -> LlamaForCausalLM:
    """A folder as transformers' save_pretrained writes it, tokenizer included; returns the model."""
    tokenizer = make_tokenizer()
    numbers: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**numbers, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # transformers starts them at one, which hides a norm in the wrong place
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return model


def some_ids(length: int, seed: int = 1, vocabulary: int = 420) -> list[int]:
    """Random token ids."""
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """(T, V)."""
    return model(torch.tensor([ids])).logits[0]


@torch.inference_mode()
def our_logits(model: Model, ids: list[int]) -> torch.Tensor:
    """(T, V)."""
    return model.network.logits(model.network.rows(torch.tensor(ids), [len(ids)]))
