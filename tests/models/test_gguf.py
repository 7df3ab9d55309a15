import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Form
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from danlu.core.errors import DanluError, ModelError
from danlu.models.gguf import GGUFFile
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.save import checkpoint
from tests.tiny import FEEDFORWARD, HEADS, KV_HEADS, LAYERS, TEMPLATE, WIDTH, make_tokenizer

from .peer import our_logits, some_ids

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
    stored = checkpoint(model)
    assert stored.keys() == held.keys()
    assert all(torch.equal(stored[name], weight) for name, weight in held.items())


def test_a_gguf_file_and_the_folder_it_came_from_are_one_model(
    tmp_path: Path, tiny_folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32)
    folder, file = (load_model(path, precision="fp32") for path in (tiny_folder, tmp_path / "m.gguf"))
    ids = torch.tensor([some_ids(50)])
    assert torch.equal(LoadedModel(folder).logits(ids), LoadedModel(file).logits(ids))
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
    ours = LoadedModel(load_model(tmp_path / "m.gguf", precision="fp32")).logits(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_untied_head_is_seen_from_the_tensors(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    head = torch.randn(weights["model.embed_tokens.weight"].shape)
    write_gguf(tmp_path / "m.gguf", {**weights, "lm_head.weight": head}, Form.F32)
    model = load_model(tmp_path / "m.gguf", precision="fp32")
    assert not model.config.is_tied
    assert torch.equal(checkpoint(model)["lm_head.weight"], head)


def test_a_file_with_another_beginning_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ModelError, match=r"m\.gguf is not a GGUF file\. Its first four bytes must be 'GGUF'"):
        load_model(tmp_path / "m.gguf")


def test_rotary_factors_are_honoured(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Frequencies divided by 8 everywhere are positions divided by 8."""
    factors = np.full(WIDTH // HEADS // 2, 8.0, dtype=np.float32)
    write_gguf(tmp_path / "factors.gguf", weights, Form.F32, add=lambda w: w.add_tensor("rope_freqs.weight", factors))

    def stretch(writer: gguf.GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", 8.0)

    write_gguf(tmp_path / "linear.gguf", weights, Form.F32, add=stretch)
    write_gguf(tmp_path / "plain.gguf", weights, Form.F32)
    found = {
        path.stem: our_logits(load_model(path, precision="fp32"), some_ids(40)) for path in tmp_path.glob("*.gguf")
    }
    torch.testing.assert_close(found["factors"], found["linear"], atol=1e-4, rtol=1e-4)
    assert (found["factors"] - found["plain"]).abs().max() > 0.1


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
    with pytest.raises(ModelError, match=r"1 missing \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
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


def test_a_way_of_stretching_positions_that_is_not_known_is_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    write_gguf(tmp_path / "m.gguf", weights, Form.F32, add=lambda w: w.add_string("llama.rope.scaling.type", "bent"))
    with pytest.raises(ModelError, match=r"stretches rotary positions by 'bent'\. Known: none, linear, yarn"):
        load_model(tmp_path / "m.gguf")


def header(*parts: bytes, tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


TENSOR = text("x") + struct.pack("<IQIQ", 1, 8, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(version=1), r"its version is 1, known are \(2, 3\)"),
        (header(version=0x03000000), r"its version is 50331648"),
        (header(tensors=2**60), r"it announces 1152921504606846976 values where \d+ bytes are left"),
        (header(fields=2**60), r"it announces 1152921504606846976 values"),
        (header(struct.pack("<Q", 2**50), fields=1), r"it announces 1125899906842624 values"),
        (header(text("k"), struct.pack("<IIQ", 9, 4, 2**40), fields=1), r"it announces 1099511627776 values"),
        (header(text("k"), struct.pack("<IIQ", 9, 9, 1), fields=1), r"a list is of the unknown kind 9"),
        (header(text("k"), struct.pack("<I", 77), fields=1), r"a field is of the unknown kind 77"),
        (header(struct.pack("<Q", 2), b"\xff\xfe", struct.pack("<II", 4, 1), fields=1), r"can't decode byte"),
        (header(text("general.alignment"), struct.pack("<II", 4, 0), fields=1), r"its alignment is 0"),
        (header(text("x"), struct.pack("<I", 99), bytes(80), tensors=1), r"tensor 'x' has 99 dimensions"),
        (header(text("x"), struct.pack("<IQIQ", 1, 8, 999, 0), tensors=1), r"999 is not a valid"),
        (header(text("x"), struct.pack("<IQIQ", 1, 7, 8, 0), tensors=1), r"row size \(7\) is not a multiple"),
        (header(text("x"), struct.pack("<IQIQ", 1, 2**60, 0, 0), tensors=1), r"it ends before the end of tensor 'x'"),
        (header(TENSOR, TENSOR, bytes(99), tensors=2), r"it has two tensors 'x'"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"m\.gguf is a damaged GGUF file: .*{message}.*Fetch it again"):
        GGUFFile(tmp_path / "m.gguf")


@given(place=st.integers(0, 6000), junk=st.binary(min_size=1, max_size=12), keep=st.integers(4, 30_000))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_the_file_only_a_model_error_comes_out(
    tmp_path: Path, whole_file: bytes, weights: dict[str, torch.Tensor], place: int, junk: bytes, keep: int
) -> None:
    data = bytearray(whole_file)
    data[place : place + len(junk)] = junk
    (tmp_path / "m.gguf").write_bytes(data[:keep] if keep < 20_000 else data)
    with contextlib.suppress(DanluError):
        assert load_model(tmp_path / "m.gguf", precision="fp32").num_parameters() == sum(
            map(torch.numel, weights.values())
        )


def test_the_file_that_is_damaged_is_whole_before(
    tmp_path: Path, whole_file: bytes, weights: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "m.gguf").write_bytes(whole_file)
    assert load_model(tmp_path / "m.gguf", precision="fp32").num_parameters() == sum(map(torch.numel, weights.values()))


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write_gguf(path, weights, Form.Q8_0)
    return path.read_bytes()
