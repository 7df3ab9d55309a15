"""A model folder and a GGUF file become the same plain folder."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import danlu
from danlu.core.errors import ModelError
from danlu.core.records import GenerateOptions
from danlu.flow.stages.convert import find_model
from danlu.lineage.store import Artifact
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from tests.tiny import FEEDFORWARD, HEADS, KV_HEADS, LAYERS, TEMPLATE, WIDTH, make_tokenizer, make_weights

Convert = Callable[[Path], Artifact]
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
NAMES |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
NAMES |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
NAMES |= {"model.layers.": "blk.", "model.embed_tokens": "token_embd", "model.norm": "output_norm"}


RECIPE = """
name: convert
stages:
  - {{name: weights, use: fetch, path: {path}}}
  - {{name: base, use: convert, inputs: {{weights: weights}}}}
"""


@pytest.fixture
def convert(tmp_path: Path, one_thread: None) -> Convert:
    """The model folder made of a fetched folder or file."""

    def go(path: Path) -> Artifact:
        recipe = tmp_path / "convert.yaml"
        recipe.write_text(RECIPE.format(path=path))
        return danlu.run(recipe).artifacts["base"]

    return go


def write_gguf(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """The tiny model as a GGUF file writes it: rotary pairs side by side, metadata for all the rest."""
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    merges = make_merges(tokenizer)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEEDFORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        values = weight.numpy()
        for projection, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if projection in name:  # halves apart → pairs side by side
                values = values.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(values.shape)
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_merges(tokenizer: object) -> list[str]:
    import json

    from tokenizers import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_a_folder_keeps_every_weight(convert: Convert, tiny_folder: Path) -> None:
    artifact = convert(tiny_folder)
    ours, theirs = load_file(artifact.path / "model.safetensors"), load_file(tiny_folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    metrics = artifact.manifest.metrics
    assert metrics["parameters"] == sum(weight.numel() for weight in theirs.values())
    assert metrics["size_bytes"] == (artifact.path / "model.safetensors").stat().st_size
    assert metrics["family"] == "llama"


def test_a_gguf_file_becomes_the_same_model(convert: Convert, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    weights = make_weights(tokenizer.get_vocab_size(with_added_tokens=True))
    path = write_gguf(tmp_path / "tiny.gguf", weights)
    folder = convert(path).path
    ours = load_file(folder / "model.safetensors")
    assert all(torch.equal(ours[name], weight) for name, weight in weights.items())
    model = LoadedModel(load_model(folder, precision="fp32"))
    text = "The navy silk dress. 蓝色 <|im_end|>\n  1234"
    assert model.model.chat.tokenizer.decode(model.model.chat.tokenizer.encode(text)) == text
    prompt = [{"role": "user", "content": "Navy silk dress"}]
    answers = [
        LoadedModel(load_model(p, precision="fp32")).generate([prompt], GenerateOptions(max_tokens=30))  # pyright: ignore[reportArgumentType]
        for p in (folder, path)
    ]
    assert answers[0] == answers[1]


def test_a_folder_that_holds_no_one_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds 0 \.gguf files and no config\.json\. A model artifact holds exactly"):
        find_model(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 \.gguf files"):
        find_model(tmp_path)


def test_a_truncated_gguf_file_is_refused(convert: Convert, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_weights(make_tokenizer().get_vocab_size(with_added_tokens=True)))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"tiny\.gguf is a damaged GGUF file.*Fetch it again"):
        convert(path)
