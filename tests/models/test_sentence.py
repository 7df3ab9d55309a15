"""Sentence-transformers folders in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from danlu.core.errors import ModelError
from danlu.core.files import read_json
from danlu.models.encode import embed
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.models.sentence import SentenceConfig, read_sentence, write_sentence
from tests.models.encoders import TEXTS, save_encoder, save_sentence, write

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_plain_folder_is_no_sentence_model(tmp_path: Path) -> None:
    assert read_sentence(tmp_path) is None


@pytest.mark.parametrize(("theirs", "ours"), [("cls_token", "first"), ("mean_tokens", "mean"), ("lasttoken", "last")])
def test_poolings_are_read(tmp_path: Path, theirs: str, ours: str) -> None:
    save_sentence(tmp_path, pooling=theirs, normalise=theirs == "lasttoken")
    expected = SentenceConfig(pooling=ours, normalise=theirs == "lasttoken", max_tokens=10)  # pyright: ignore[reportArgumentType]
    assert read_sentence(tmp_path) == expected


def test_the_short_form_of_a_pooling_is_read(tmp_path: Path) -> None:
    save_sentence(tmp_path)
    write(tmp_path / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": "cls"})
    found = read_sentence(tmp_path)
    assert found is not None
    assert found.pooling == "first"


@pytest.mark.parametrize(
    "config",
    [
        SentenceConfig(),
        SentenceConfig(pooling="last", normalise=True, max_tokens=77, lower_case=True),
        SentenceConfig(pooling="first", prompts={"query": "q: ", "passage": "p: "}, default_prompt="query"),
    ],
)
def test_what_is_written_is_read_again(tmp_path: Path, config: SentenceConfig) -> None:
    write_sentence(config, 32, tmp_path)
    assert read_sentence(tmp_path) == config
    assert read_json(tmp_path / "1_Pooling" / "config.json")["word_embedding_dimension"] == 32


def test_a_model_saves_its_sentence_files_and_answers_alike(tmp_path: Path) -> None:
    save_encoder(tmp_path / "one", BertModel)
    save_sentence(tmp_path / "one", do_lower_case=True)
    model = load_model(tmp_path / "one", precision="fp32")
    save_model(model, tmp_path / "two")
    again = load_model(tmp_path / "two", precision="fp32")
    assert again.sentence == model.sentence
    assert torch.equal(embed(again, TEXTS), embed(model, TEXTS))
    names = [module["type"].rpartition(".")[2] for module in read_json(tmp_path / "two" / "modules.json")]
    assert names == ["Transformer", "Pooling", "Normalize"]
    BertModel.from_pretrained(tmp_path / "two")


def test_prompts_stand_before_texts(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    save_sentence(tmp_path)
    prompts: dict[str, Any] = {"prompts": {"query": "the cat ", "document": ""}, "default_prompt_name": None}
    write(tmp_path / "config_sentence_transformers.json", prompts)
    model = load_model(tmp_path, precision="fp32")
    asked, plain = embed(model, ["met ann"], prompt="query"), embed(model, ["the cat met ann"])
    assert torch.equal(asked, plain)
    with pytest.raises(ModelError, match=r"The model has no prompt 'passage'\. Known: query"):
        embed(model, ["met ann"], prompt="passage")
    write(tmp_path / "config_sentence_transformers.json", {**prompts, "default_prompt_name": "query"})
    assert torch.equal(embed(load_model(tmp_path, precision="fp32"), ["met ann"]), plain)


def test_what_is_not_honoured_is_refused(tmp_path: Path) -> None:
    save_sentence(tmp_path, pooling="max_tokens")
    with pytest.raises(
        ModelError, match=r"pooling is pooling_mode_max_tokens\. Supported is one of pooling_mode_cls_token"
    ):
        read_sentence(tmp_path)
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(ModelError, match="pooling is pooling_mode_cls_token, pooling_mode_mean_tokens"):
        read_sentence(tmp_path)
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "include_prompt": False})
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    with pytest.raises(ModelError, match=r"include_prompt is false\. Only models that pool their prompts"):
        read_sentence(tmp_path)
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 10, "chunks": 2})
    with pytest.raises(ModelError, match=r"sentence_bert_config\.json has an unknown key 'chunks'"):
        read_sentence(tmp_path)
    modules = read_json(tmp_path / "modules.json")
    write(tmp_path / "modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    with pytest.raises(ModelError, match=r"keeps the encoder in '0_Transformer'\. Move its files"):
        read_sentence(tmp_path)
    write(tmp_path / "modules.json", [*modules, {"idx": 3, "name": "3", "path": "3_Dense", "type": "x.models.Dense"}])
    with pytest.raises(ModelError, match=r"lists Transformer, Pooling, Normalize, Dense\. Only Transformer, Pooling"):
        read_sentence(tmp_path)
