"""A whole language model of 20,000 random weights as a Hugging Face folder, and a small shop whose reviews make pairs.

Written with plain tensors under the family's public names, so that it does not depend on danlu's own writer.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, LAYERS, HEADS, KV_HEADS, FEEDFORWARD = 32, 2, 4, 2, 64

COLOURS = ("navy", "black", "white", "green", "red", "pink", "grey", "ivory")
MATERIALS = ("cotton", "silk", "linen", "wool", "denim", "velvet", "lace", "suede", "corduroy", "chiffon")
FITS = ("loose", "fitted", "relaxed", "tailored")
GARMENTS = ("dress", "top", "skirt", "jacket", "cardigan")
OCCASIONS = ("wedding", "party", "weekend")
PARTS = ("pockets", "sleeves", "a collar", "a hood", "buttons", "a belt", "ruffles", "pleats")


def shop_rows(num_rows: int = 400) -> list[dict[str, str | int]]:
    """Reviews in the form of the real ones: describing sentences between chatter, ratings, a few bad rows."""
    generator = random.Random(4)
    kinds = list(itertools.product(GARMENTS, COLOURS, MATERIALS, FITS))
    generator.shuffle(kinds)
    rows: list[dict[str, str | int]] = []
    for number, (garment, colour, material, fit) in enumerate(itertools.islice(itertools.cycle(kinds), num_rows)):
        first, second = generator.sample(PARTS, 2)
        text = (
            f"I love it! The {colour} {material} {garment} has {first} and {second}, with a {fit} fit. "
            f"The fabric is soft and lined for a {generator.choice(OCCASIONS)} look. Mail a@b.com."
        )
        rows.append(
            {
                "Clothing ID": number % 90,
                "Title": f"{colour} {material} {garment}",
                "Review Text": "" if number % 40 == 39 else text,
                "Rating": 2 if number % 25 == 24 else 5,
                "Class Name": f"{garment.title()}s",
            }
        )
    return rows


def write_shop(path: Path, num_rows: int = 400) -> Path:
    """The shop's reviews as CSV."""
    rows = shop_rows(num_rows)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE: every byte, three special tokens, and merges learnt from the shop."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([str(row["Review Text"]) for row in shop_rows(120)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def make_weights(vocabulary: int, seed: int = 0, *, is_tied: bool = True) -> dict[str, torch.Tensor]:
    """Random weights under the family's names, wide enough apart that greedy answers differ and ties do not occur."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float = 0.35) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * spread

    head = WIDTH // HEADS
    weights = {"model.embed_tokens.weight": normal(vocabulary, WIDTH), "model.norm.weight": 1 + normal(WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": 1 + normal(WIDTH),
            f"{name}.self_attn.q_proj.weight": normal(HEADS * head, WIDTH),
            f"{name}.self_attn.k_proj.weight": normal(KV_HEADS * head, WIDTH),
            f"{name}.self_attn.v_proj.weight": normal(KV_HEADS * head, WIDTH),
            f"{name}.self_attn.o_proj.weight": normal(WIDTH, HEADS * head),
            f"{name}.post_attention_layernorm.weight": 1 + normal(WIDTH),
            f"{name}.mlp.gate_proj.weight": normal(FEEDFORWARD, WIDTH),
            f"{name}.mlp.up_proj.weight": normal(FEEDFORWARD, WIDTH),
            f"{name}.mlp.down_proj.weight": normal(WIDTH, FEEDFORWARD),
        }
    if not is_tied:
        weights["lm_head.weight"] = normal(vocabulary, WIDTH)
    return weights


def write_tiny(folder: Path, *, seed: int = 0, context: int = 512, is_tied: bool = True) -> Path:
    """A model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
    save_file(make_weights(vocabulary, seed, is_tied=is_tied), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": FEEDFORWARD,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": is_tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return folder
