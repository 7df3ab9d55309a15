import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.errors import DataError, ModelError, ResourceError
from danlu.models.load import load_model
from danlu.models.save import checkpoint, save_model

from .peer import logits_of, our_logits, save_llama, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")


def logits_in(folder: Path, ids: list[int]) -> torch.Tensor:
    return our_logits(load_model(folder, precision="fp32"), ids)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    ],
    ids=["tied", "untied", "no-grouping", "wide-heads", "rope-base"],
)
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    peer = save_llama(tmp_path / "theirs", **changes)
    for length in (1, 7, 40):
        ids = some_ids(length, seed=length)
        torch.testing.assert_close(logits_in(tmp_path / "theirs", ids), logits_of(peer, ids), atol=1e-4, rtol=1e-4)


def test_a_row_longer_than_any_block_of_attention_equals_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "theirs")
    ids = some_ids(700)
    torch.testing.assert_close(logits_in(tmp_path / "theirs", ids), logits_of(peer, ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_saved_model_gives_transformers_the_same_logits_and_tokens(tmp_path: Path, is_tied: bool) -> None:
    peer = save_llama(tmp_path / "theirs", tie_word_embeddings=is_tied)
    model = load_model(tmp_path / "theirs", precision="fp32")
    save_model(model, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ids = some_ids(30)
    assert torch.equal(logits_of(again, ids), logits_of(peer, ids))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    messages = [{"role": "user", "content": "A navy lace dress."}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert theirs == model.chat.prompt_ids(messages)


def test_a_saved_model_tells_transformers_which_token_ends_an_answer(tmp_path: Path, tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    save_model(model, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.generation_config.eos_token_id in model.chat.tokenizer.end_ids


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saving_and_loading_again_changes_no_bit(tmp_path: Path, tiny_folder: Path, precision: str) -> None:
    model = load_model(tiny_folder, precision=precision)
    save_model(model, tmp_path / "one")
    again = load_model(tmp_path / "one", precision=precision)
    save_model(again, tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    ids = some_ids(20)
    assert torch.equal(our_logits(model, ids), our_logits(again, ids))


def test_the_number_of_parameters_counts_tied_weights_once(tmp_path: Path) -> None:
    for is_tied in (True, False):
        peer = save_llama(tmp_path / str(is_tied), tie_word_embeddings=is_tied)
        assert load_model(tmp_path / str(is_tied), precision="fp32").num_parameters() == peer.num_parameters()


def test_bf16_weights_give_nearly_the_same_predictions(tiny_folder: Path) -> None:
    ids = some_ids(64)
    exact = our_logits(load_model(tiny_folder, precision="fp32"), ids)
    model = load_model(tiny_folder, precision="bf16")
    rounded = our_logits(model, ids)
    assert model.precision == "bf16"
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).norm() / exact.norm()
    assert error < 0.06


def test_far_positions_stay_exact_in_bf16(tmp_path: Path) -> None:
    """Angles rounded to bf16 are off by whole turns after some hundred tokens; only values may be rounded."""
    save_llama(tmp_path / "m")
    ids = some_ids(1000)
    exact = our_logits(load_model(tmp_path / "m", precision="fp32"), ids)[-100:]
    rounded = our_logits(load_model(tmp_path / "m", precision="bf16"), ids)[-100:]
    assert (rounded.float() - exact).norm() / exact.norm() < 0.06


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m", shard_size="40KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    ids = some_ids(20)
    torch.testing.assert_close(logits_in(tmp_path / "m", ids), logits_of(peer, ids), atol=1e-4, rtol=1e-4)


def test_a_full_disk_is_said(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("danlu.models.tensors.save_file", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .*model\.safetensors could not be written"):
        save_model(load_model(tiny_folder), tmp_path / "m")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "damaged"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_missing_and_an_unknown_tensor_are_named(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"model.extra.weight": w.pop("model.layers.1.mlp.up_proj.weight")}))
    with pytest.raises(
        ModelError,
        match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\); 1 not of this family \(model\.extra\.weight\)\."
        r" Are all files of one model",
    ):
        load_model(folder)


def test_many_missing_tensors_are_cut_short(folder: Path) -> None:
    change_weights(folder, lambda w: [w.pop(name) for name in list(w) if "layers.0" in name])
    with pytest.raises(ModelError, match=r"9 missing \(model\.layers\.0\.input_layernorm\.weight, .*, …\)"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change_config(folder, intermediate_size=80)
    with pytest.raises(
        ModelError,
        match=r"6 of another shape \(.*gate_proj\.weight is \(64, 32\), the config says \(80, 32\), .*down_proj",
    ):
        load_model(folder)


def test_all_that_is_wrong_with_the_tensors_is_one_error(folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.extra.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
        weights["model.norm.weight"] = torch.ones(31)

    change_weights(folder, spoil)
    with pytest.raises(ModelError, match=r"1 missing .*; 1 not of this family .*; 1 of another shape \(model\.norm"):
        load_model(folder)


def test_a_shard_that_is_missing_is_said(tmp_path: Path) -> None:
    save_llama(tmp_path / "m", shard_size="40KB")
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"lacks {shard.name}\. Fetch the missing shards"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"tensors do not fit the config: \d+ missing"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"x": 1}}'])
def test_an_index_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json has no weight_map of names to files\. Fetch it again"):
        load_model(folder)


def test_an_index_cannot_name_files_elsewhere(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    with pytest.raises(ModelError, match=r"lacks other\.safetensors"):
        load_model(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "copy.safetensors")
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    with pytest.raises(ModelError, match=r"Tensor .* is in both copy\.safetensors and first\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 5000], ids=["empty", "header-cut", "cut"])
def test_a_damaged_weights_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: .*Fetch or make it again"):
        load_model(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors\. pytorch_model\.bin is a pickle, which"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors\. Convert the weights to safetensors first"):
        load_model(folder)


def test_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name in ("modeling_tiny.py", "configuration_tiny.py", "__init__.py"):
        (folder / name).write_text(code)
    load_model(folder)
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"}, trust_remote_code=True)
    with pytest.raises(ModelError, match=r"auto_map|trust_remote_code"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json\. A model folder has config\.json and \*\.safetensors"):
        load_model(folder)


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(DataError, match=r"config\.json is not JSON"):
        load_model(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json is not an object\. Copy the model's own config\.json"):
        load_model(folder)


def test_an_unknown_family_names_the_known_ones(folder: Path) -> None:
    change_config(folder, model_type="rwkv5")
    with pytest.raises(ModelError, match=r"Model family 'rwkv5' is not supported\. Known: .*llama"):
        load_model(folder)


def test_an_unknown_quantisation_is_refused(folder: Path) -> None:
    (folder / "danlu.json").write_text('{"quantization": {"scheme": "int3"}}')
    with pytest.raises(ModelError, match=r"quantisation scheme 'int3' is unknown. Known: int8"):
        load_model(folder)


def test_a_folder_without_a_tokenizer_takes_ids_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    model = load_model(folder)
    assert not model.has_tokenizer
    with pytest.raises(ModelError, match=r"This model has no tokenizer\. Put its tokenizer\.json into"):
        _ = model.chat


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_other_number_types_are_read_as_what_was_asked_for(folder: Path, dtype: torch.dtype) -> None:
    """bf16 → fp32 is exact; the way back rounds nothing either."""
    exact = load_file(folder / "model.safetensors")
    change_weights(folder, lambda w: w.update({name: weight.to(dtype) for name, weight in w.items()}))
    whole, half = (load_model(folder, precision=precision) for precision in ("fp32", "bf16"))
    state = checkpoint(whole)
    assert all(torch.equal(state[name], weight.to(dtype).float()) for name, weight in exact.items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in checkpoint(half).values())
    if dtype == torch.bfloat16:
        assert all(torch.equal(checkpoint(half)[name], weight.to(dtype)) for name, weight in exact.items())


def test_straight_to_int8_is_what_quantising_gives(folder: Path, tmp_path: Path) -> None:
    direct = load_model(folder, precision="fp32", scheme="int8")
    quantize(folder, tmp_path / "int8", QuantizeConfig())
    ids = some_ids(20)
    assert torch.equal(our_logits(direct, ids), our_logits(load_model(tmp_path / "int8", precision="fp32"), ids))
    with pytest.raises(ModelError, match=r"Quantisation scheme 'int3' is unknown\. Known: int8"):
        load_model(folder, scheme="int3")


def test_a_place_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model at .*nothere\. Give a model folder, a \.gguf file or an"):
        load_model(tmp_path / "nothere")
    (tmp_path / "x.bin").touch()
    with pytest.raises(ModelError, match=r"x\.bin is neither a model folder nor a \.gguf file"):
        load_model(tmp_path / "x.bin")


def test_a_template_in_a_file_of_its_own_is_used(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    chat = load_model(folder).chat
    assert chat.prompt_ids([{"role": "user", "content": "hi"}]) == chat.tokenizer.encode("[hi]")
