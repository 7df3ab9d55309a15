import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Form
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.errors import ModelError, ResourceError
from danlu.models.gguf import GGUFFile
from danlu.models.gguf_write import FORMS, export_gguf
from danlu.models.load import load_model
from danlu.models.save import checkpoint
from tests.tiny import TEMPLATE

from .case import change_config, save_peer
from .families import FAMILIES
from .gguf_peer import VOCABULARY
from .peer import logits_of, our_logits, save_llama, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {name: case for name, case in FAMILIES.items() if case.gguf}


@pytest.mark.parametrize("name", CASES)
def test_a_family_exported_and_read_again_is_the_same_model(name: str, tmp_path: Path, tiny_folder: Path) -> None:
    case = replace(CASES[name], numbers={**CASES[name].numbers, "vocab_size": VOCABULARY}, vocabulary=VOCABULARY)
    folder = save_peer(case.make(), tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / file, folder / file)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    before, after = (load_model(path, precision="fp32") for path in (folder, tmp_path / "m.gguf"))
    assert after.architecture.gguf == before.architecture.gguf
    ids = some_ids(24)
    torch.testing.assert_close(our_logits(after, ids), our_logits(before, ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_what_the_reference_rounds_to(form: str, tmp_path: Path, tiny_folder: Path) -> None:
    export_gguf(tiny_folder, tmp_path / "m.gguf", form)
    state = checkpoint(load_model(tmp_path / "m.gguf", precision="fp32"))
    for name, weight in load_file(tiny_folder / "model.safetensors").items():
        kind = Form.F32 if weight.dim() == 1 else FORMS[form]
        if form == "q4_0" and "embed_tokens" in name:
            kind = Form.Q8_0  # it is the head too
        rounded = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
        assert torch.equal(state[name], torch.from_numpy(np.array(rounded, dtype=np.float32))), name


def test_q8_0_is_close_and_q4_0_is_recognisable(tmp_path: Path, tiny_folder: Path) -> None:
    ids = some_ids(60)
    exact = our_logits(load_model(tiny_folder, precision="fp32"), ids)
    errors: dict[str, float] = {}
    for form in ("f16", "q8_0", "q4_0"):
        export_gguf(tiny_folder, tmp_path / "m.gguf", form)
        found = our_logits(load_model(tmp_path / "m.gguf", precision="fp32"), ids)
        errors[form] = float((found - exact).norm() / exact.norm())
    assert errors["f16"] < 0.005
    assert errors["q8_0"] < 0.1
    assert errors["q4_0"] < 0.8


def test_transformers_answers_alike_from_the_file(tmp_path: Path, tiny_folder: Path) -> None:
    export_gguf(tiny_folder, tmp_path / "m.gguf", "q8_0")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = some_ids(50)
    ours = our_logits(load_model(tmp_path / "m.gguf", precision="fp32"), ids)
    torch.testing.assert_close(ours, logits_of(peer, ids), atol=1e-4, rtol=1e-4)


def test_conversations_come_along(tmp_path: Path, tiny_folder: Path) -> None:
    export_gguf(tiny_folder, tmp_path / "m.gguf", "q8_0")
    before, after = (load_model(path).chat for path in (tiny_folder, tmp_path / "m.gguf"))
    text = "I'll take 12 navy dresses — 面料柔软 👗 <|im_end|>\n\n"
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    assert after.prompt_ids(messages) == before.prompt_ids(messages)
    assert after.tokenizer.end_ids == before.tokenizer.end_ids
    assert after.tokenizer.begin_id == before.tokenizer.begin_id
    assert after.source == TEMPLATE


def test_other_programs_find_what_they_look_for(tmp_path: Path, tiny_folder: Path) -> None:
    done = export_gguf(tiny_folder, tmp_path / "m.gguf", "q4_0", name="Copy writer", licence="apache-2.0")
    reader = gguf.GGUFReader(done.path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert (said["general.name"], said["general.license"], said["general.type"]) == (
        "Copy writer",
        "apache-2.0",
        "model",
    )
    assert (said["general.file_type"], said["general.quantization_version"]) == (2, 2)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.ggml.tokens"][2] == "<|im_end|>"
    assert said["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert said["llama.vocab_size"] == len(said["tokenizer.ggml.tokens"])
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.attn_norm.weight"]) == ("Q4_0", "F32")
    assert done.forms == {"F32": 5, "Q4_0": 14, "Q8_0": 1}
    assert done.size_bytes == done.path.stat().st_size


def test_rows_that_fit_no_block_become_f16(tmp_path: Path) -> None:
    save_llama(tmp_path / "m")  # the feed-forward is 48 wide
    done = export_gguf(tmp_path / "m", tmp_path / "m.gguf", "q8_0")
    file = GGUFFile(done.path)
    assert {name for name in file.names() if file.form(name) == "F16"} == {f"blk.{i}.ffn_down.weight" for i in (0, 1)}


def test_ids_without_a_token_are_filled_up(tmp_path: Path) -> None:
    save_llama(tmp_path / "m", vocab_size=448)
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32")
    tokens = GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]
    assert tokens[447] == "[PAD447]"
    assert load_model(tmp_path / "m.gguf").config.vocabulary_size == 448


def test_a_file_can_be_written_again_in_another_form(tmp_path: Path, tiny_folder: Path) -> None:
    export_gguf(tiny_folder, tmp_path / "f16.gguf", "f16")
    export_gguf(tmp_path / "f16.gguf", tmp_path / "again.gguf", "f16")
    first, again = (checkpoint(load_model(tmp_path / name, precision="fp32")) for name in ("f16.gguf", "again.gguf"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .*m\.gguf could not be written"):
        export_gguf(tiny_folder, tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_form_names_the_closest(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"The form 'q8' cannot be written\. Did you mean 'q8_0'"):
        export_gguf(tiny_folder, tmp_path / "m.gguf", "q8")


def test_a_family_without_a_gguf_form_is_refused(tmp_path: Path) -> None:
    folder = save_peer(FAMILIES["bert"].make(), tmp_path / "bert")
    with pytest.raises(ModelError, match=r"The family 'bert' has no GGUF form\. Save it as a model folder"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_peer(FAMILIES["llama"].make(), tmp_path / "llama")
    with pytest.raises(ModelError, match=r"has no tokenizer, which a GGUF file must hold\. Put tokenizer\.json"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_a_quantised_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    quantize(tiny_folder, tmp_path / "int8", QuantizeConfig())
    with pytest.raises(ModelError, match=r"is quantised already \(int8\)\. Export the plain model"):
        export_gguf(tmp_path / "int8", tmp_path / "m.gguf")


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    folder = save_peer(FAMILIES["llama"].make(), tmp_path / "llama")
    shutil.copy(tiny_folder / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(ModelError, match=r"The tokenizer has \d+ tokens, the model \d+\. Are all files of one model"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_a_tensor_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_llama(tmp_path / "m")
    change_config(tmp_path / "m", intermediate_size=64)
    with pytest.raises(ModelError, match=r"tensors do not fit the config: 6 of another shape"):
        export_gguf(tmp_path / "m", tmp_path / "out" / "m.gguf")
    assert not (tmp_path / "out").exists()
