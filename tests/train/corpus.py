"""Reviews of the tiny shop as token shards, and tiny models of each kind that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.events import Display, Events, Silent
from danlu.data.loader import TokenSource
from danlu.data.shard_writer import ShardConfig, ShardWriter
from danlu.data.shards import TokenShards
from danlu.models.model import Model
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from danlu.train.new_model import NewModelConfig, new_model
from danlu.train.optim import OptimConfig
from danlu.train.run import Job
from danlu.train.stages.pretrain import PretrainConfig, pretrain
from tests.tiny import make_tokenizer, shop_rows

CONFIG = PretrainConfig(
    steps=12,
    sequence_length=48,
    tokens_per_step=192,
    save_every=4,
    validate_every=6,
    max_validation_rows=5,
    samples=0,
    optim=OptimConfig(learning_rate=1e-2),
)
SIZES: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "feedforward": 64, "context_length": 64}


def tokenizer(*more: str) -> TextTokenizer:
    """The shop's; ``more`` are further special tokens."""
    backend = make_tokenizer()
    backend.add_special_tokens(list(more))
    roles = {"pad_token": "<|endoftext|>", "mask_token": "<mask>"}
    return TextTokenizer(backend, end_tokens=["<|im_end|>"], roles=roles)


def fresh(family: str = "llama", *, seed: int = 1, **options: Any) -> Model:
    """An untrained model."""
    more = ["<mask>"] if family in ("bert", "bart") else []
    config = NewModelConfig(**{**SIZES, "family": family, **options})
    return new_model(config, ChatFormat(tokenizer(*more), None), seed)


def texts(count: int) -> list[str]:
    """Reviews, some short, some of several sentences."""
    reviews = [str(row["Review Text"]) for row in shop_rows(2 * count) if row["Review Text"]]
    return [text[: 20 + 17 * (number % 9)] for number, text in enumerate(reviews[:count])]


def write_corpus(folder: Path, count: int = 40, *, first: int = 0, vocabulary_size: int | None = None) -> TokenShards:
    """Reviews as the tokenize stage writes them: each with the separator behind it."""
    known = tokenizer()
    writer = ShardWriter(
        folder, vocabulary_size=vocabulary_size or known.vocabulary_size, config=ShardConfig(shard_tokens=500)
    )
    separator = known.special_ids["<|endoftext|>"]
    for number, text in enumerate(texts(first + count)[first:]):
        writer.add(number, [*known.encode(text), separator], text_bytes=len(text.encode()), characters=len(text))
    writer.finish()
    return TokenShards(folder)


def train(
    model: Model,
    shards: Path,
    work: Path,
    config: PretrainConfig = CONFIG,
    display: Display | None = None,
    *,
    seed: int = 3,
) -> dict[str, Any]:
    """Pre-train on ``shards``/train, watch ``shards``/validation; the curve goes beside ``work``."""
    job = Job(
        work=work, log_path=work.parent / "curve.jsonl", events=Events(display=display or Silent()), seed=seed
    )  # fmt: skip
    source = TokenSource(shards=TokenShards(shards / "train"))
    return pretrain(model, [source], TokenShards(shards / "validation"), config, job)
