import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Form
from safetensors.torch import load_file

from danlu.core.errors import ModelError
from danlu.models.generate import ReferenceModel
from danlu.models.gguf import GGUFFile
from danlu.models.load import load_model
from tests.tiny import FEEDFORWARD, HEADS, KV_HEADS, LAYERS, TEMPLATE, WIDTH, make_tokenizer

from .peer import some_ids

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for theirs, short in {"model.embed_tokens": "token_embd", "model.norm": "output_norm", **NAMES}.items():
        name = name.replace(theirs, short)
    return name.replace("model.layers.", "blk.").replace("lm_head", "output")


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What the GGUF converter does to query and key rows: the two halves of a head are shuffled like cards."""
    rows = []
    for head in weight.chunk(heads):
        first, second = head.chunk(2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return torch.stack(rows)


def converted(name: str, weight: torch.Tensor) -> torch.Tensor:
    if "q_proj" in name:
        return interleave(weight, HEADS)
    return interleave(weight, KV_HEADS) if "k_proj" in name else weight


def write_gguf(
    path: Path,
    weights: dict[str, torch.Tensor],
    form: Form,
    skip: str = "",
    add: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> dict[str, torch.Tensor]:
    """A GGUF file of these weights; returns the values that it really holds, under their public names."""
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "llama.block_count": LAYERS,
        "llama.context_length": 1024,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEEDFORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    for key, number in numbers.items():
        if key != skip:
            writer.add_uint32(key, number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 3 else 1 for _, index in vocabulary])
    if skip != "tokenizer.ggml.merges":
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_chat_template(TEMPLATE)
    add(writer)
    held: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        values = weight.numpy()
        if weight.dim() == 1 or form == Form.F32:
            writer.add_tensor(gguf_name(name), converted(name, weight).numpy())
        else:
            stored = gguf.quantize(converted(name, weight).numpy(), form)
            # Quantising works row by row, so the order of rows does not change the values.
            values = gguf.dequantize(gguf.quantize(values, form), form)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=None if form == Form.F16 else form)
        held[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture(scope="module")
def weights(tiny_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_folder / "model.safetensors")


@pytest.mark.parametrize("form", [Form.F32, Form.F16, Form.BF16, Form.Q8_0, Form.Q4_1], ids=lambda form: form.name)
def test_every_stored_form_is_read_to_the_values_it_holds(
    tmp_path: Path, weights: dict[str, torch.Tensor], form: Form
) -> None:
    held = write_gguf(tmp_path / "m.gguf", weights, form)
    model = load_model(tmp_path / "m.gguf", precision="fp32")
    state = model.decoder.state_dict()
    for ours, theirs in model.architecture.weight_names(model.config).items():
        assert torch.equal(state[ours], torch.cat([held[name] for name in theirs])), ours


def test_a_gguf_file_and_the_folder_it_came_from_are_one_model(
    tmp_path: Path, tiny_folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32)
    folder, file = (load_model(path, precision="fp32") for path in (tiny_folder, tmp_path / "m.gguf"))
    ids = torch.tensor([some_ids(50)])
    assert torch.equal(ReferenceModel(folder).logits(ids), ReferenceModel(file).logits(ids))
    text = "The navy dress, 100% cotton — 面料柔软 👗 <|im_end|>"
    assert folder.chat.tokenizer.encode(text) == file.chat.tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    assert folder.chat.prompt_ids(messages) == file.chat.prompt_ids(messages)
    assert folder.chat.tokenizer.end_ids == file.chat.tokenizer.end_ids


def test_transformers_reads_the_same_weights_from_the_same_file(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "m.gguf", weights, Form.Q8_0)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([some_ids(50)])
    with torch.no_grad():
        theirs = peer(ids).logits
    ours = ReferenceModel(load_model(tmp_path / "m.gguf", precision="fp32")).logits(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_untied_head_is_seen_from_the_tensors(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    head = torch.randn(weights["model.embed_tokens.weight"].shape)
    write_gguf(tmp_path / "m.gguf", {**weights, "lm_head.weight": head}, Form.F32)
    model = load_model(tmp_path / "m.gguf", precision="fp32")
    assert not model.config.tied_head
    assert torch.equal(model.decoder.state_dict()["head.weight"], head)


def test_a_file_with_another_beginning_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ModelError, match=r"m\.gguf is not a GGUF file\. Its first four bytes must be 'GGUF'"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0, False), (8.0, True)])
def test_rotary_factors_that_are_not_honoured_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], factor: float, is_refused: bool
) -> None:
    factors = np.full(WIDTH // HEADS // 2, factor, dtype=np.float32)
    write_gguf(tmp_path / "m.gguf", weights, Form.F32, add=lambda w: w.add_tensor("rope_freqs.weight", factors))
    if is_refused:
        with pytest.raises(ModelError, match=r"m\.gguf stretches its rotary positions \(rope_freqs\.weight\)"):
            load_model(tmp_path / "m.gguf")
    else:
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [4, 20, 3000, 20_000], ids=["magic", "header", "metadata", "tensors"])
def test_a_cut_file_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor], keep: int) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32)
    whole = (tmp_path / "m.gguf").read_bytes()
    assert len(whole) > keep
    (tmp_path / "m.gguf").write_bytes(whole[:keep])
    with pytest.raises(ModelError, match=r"m\.gguf is a damaged GGUF file: .*Fetch it again"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.model
def test_a_cut_copy_of_the_real_file_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    with open(smollm2_gguf, "rb") as handle:
        (tmp_path / "m.gguf").write_bytes(handle.read(4_000_000))
    with pytest.raises(ModelError, match=r"m\.gguf is a damaged GGUF file"):
        load_model(tmp_path / "m.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    fewer = {name: weight for name, weight in weights.items() if name != "model.layers.0.mlp.up_proj.weight"}
    write_gguf(tmp_path / "m.gguf", fewer, Form.F32)
    with pytest.raises(ModelError, match=r"1 missing \(blk\.0\.ffn_up\.weight\)"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("llama.block_count", r"The GGUF metadata lacks 'llama\.block_count'"),
        ("tokenizer.ggml.merges", r"The GGUF metadata lacks tokenizer\.ggml\.merges"),
        ("tokenizer.ggml.eos_token_id", r"The GGUF metadata lacks tokenizer\.ggml\.eos_token_id"),
    ],
)
def test_missing_metadata_is_named(tmp_path: Path, weights: dict[str, torch.Tensor], key: str, message: str) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32, skip=key)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m.gguf")


def test_a_form_that_cannot_be_read_names_those_that_can(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", np.zeros((4, 54), dtype=np.uint8), raw_dtype=Form.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"tensor x is stored as TQ1_0\. Readable: F32, F16, .*Q4_1"):
        GGUFFile(tmp_path / "m.gguf").read("x")


def test_stretched_rotary_positions_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32, add=lambda w: w.add_string("llama.rope.scaling.type", "yarn"))
    with pytest.raises(ModelError, match=r"rope_scaling is 'yarn'. Only None is supported so far"):
        load_model(tmp_path / "m.gguf")
