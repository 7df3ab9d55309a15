import json
import shutil
from pathlib import Path

import pytest

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.errors import DataError, ModelError
from danlu.models.counts import DEFINITIONS
from danlu.models.gguf_write import export_gguf
from danlu.models.inspect import as_mapping, inspect_config, inspect_model
from danlu.models.tensors import TensorFiles

from .case import save_peer
from .families import FAMILIES
from .peer import save_llama

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_says_what_it_is(tiny_folder: Path) -> None:
    facts = inspect_model(tiny_folder)
    assert (facts.family, facts.head, facts.layers, facts.width, facts.context) == ("llama", "lm", 2, 32, 1024)
    assert facts.counts.parameters == 32_032
    assert facts.stored_bytes == 4 * facts.counts.parameters
    tokenizer = facts.tokenizer
    assert tokenizer is not None
    assert (tokenizer.kind, tokenizer.vocabulary_size, tokenizer.has_chat_template) == ("BPE", 420, True)
    assert tokenizer.special_tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.end_tokens == ("<|im_end|>",)


def test_no_weight_is_read(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TensorFiles, "read")
    facts = inspect_model(tiny_folder)
    assert [tensor.name for tensor in facts.tensors[:2]] == ["model.embed_tokens.weight", facts.tensors[1].name]
    assert {tensor.dtype for tensor in facts.tensors} == {"F32"}


def test_layers_are_listed_in_their_order(tmp_path: Path) -> None:
    save_llama(tmp_path / "m", num_hidden_layers=11)
    names = [tensor.name for tensor in inspect_model(tmp_path / "m").tensors if "q_proj" in tensor.name]
    assert names == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(11)]


def test_a_file_says_what_its_folder_does(tmp_path: Path, tiny_folder: Path) -> None:
    export_gguf(tiny_folder, tmp_path / "m.gguf", "q8_0", licence="mit")
    folder, file = inspect_model(tiny_folder), inspect_model(tmp_path / "m.gguf")
    assert file.licence == "mit"
    assert file.counts == folder.counts
    assert file.tokenizer == folder.tokenizer
    assert {tensor.dtype for tensor in file.tensors} == {"F32", "Q8_0"}
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    assert shapes["blk.0.ffn_up.weight"] == (64, 32)


def test_a_quantised_folder_says_how(tmp_path: Path, tiny_folder: Path) -> None:
    quantize(tiny_folder, tmp_path / "int8", QuantizeConfig())
    facts = inspect_model(tmp_path / "int8")
    assert facts.scheme == "int8"
    assert facts.counts.parameters == inspect_model(tiny_folder).counts.parameters
    assert facts.stored_bytes == facts.counts.memory_bytes["int8"]


def test_a_config_alone_is_enough(tmp_path: Path, tiny_folder: Path) -> None:
    for name in ("alone.json", "folder/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_folder / "config.json", tmp_path / name)
    whole = inspect_model(tiny_folder)
    for path in (tmp_path / "alone.json", tmp_path / "folder"):
        facts = inspect_model(path)
        assert facts.counts == whole.counts
        assert (facts.tensors, facts.tokenizer, facts.licence) == ((), None, None)


def test_a_changed_config_is_counted_as_changed(tmp_path: Path, tiny_folder: Path) -> None:
    before, after = inspect_model(tiny_folder), inspect_model(tiny_folder, {"num_hidden_layers": 4}, 16)
    layer = (before.counts.parameters - 420 * 32 - 32) // 2
    assert after.counts.parameters == before.counts.parameters + 2 * layer
    assert after.counts.length == 16
    assert after.tensors == ()
    export_gguf(tiny_folder, tmp_path / "m.gguf", "f32")
    assert inspect_model(tmp_path / "m.gguf", {"num_hidden_layers": 4}, 16).counts == after.counts


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "lm"),
        ("bert-classify", "classify"),
        ("t5", "lm"),
        ("clip", "pair"),
        ("vit", "classify"),
        ("t5-encoder", "hidden"),
    ],
)
def test_the_head_is_named(name: str, head: str, tmp_path: Path) -> None:
    facts = inspect_model(save_peer(FAMILIES[name].make(), tmp_path))
    assert facts.head == head


# ---- json, and what is refused ---------------------------------------------------------------------------------------


def test_everything_fits_into_json_and_says_what_it_means(tiny_folder: Path) -> None:
    whole = json.loads(json.dumps(as_mapping(inspect_model(tiny_folder))))
    assert whole["counts"]["parameters"] == 32_032
    assert whole["counts"]["other_parameters"] == 32_032 - 420 * 32
    assert len(whole["tensors"]) == 20
    assert whole["definitions"] == DEFINITIONS
    assert "tensors" not in as_mapping(inspect_model(tiny_folder), tensors=False)


def test_what_is_no_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model at .*nothing\. Give a model folder, a \.gguf file or"):
        inspect_model(tmp_path / "nothing")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ModelError, match=r"x\.json is not an object\. Give a model's config\.json"):
        inspect_model(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        inspect_model(tmp_path / "x.json")
    with pytest.raises(ModelError, match=r"The row has 0 tokens\. Use 1 or more"):
        inspect_model(tiny_folder, length=0)
    with pytest.raises(ModelError, match=r"config\.json has an unknown key 'surprise'"):
        inspect_model(tiny_folder, {"surprise": 1})
    with pytest.raises(ModelError, match=r"Model family '\(none\)' is not supported"):
        inspect_config({})
