"""BERT, RoBERTa and XLM-R as their files on the hub say it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, RobertaForMaskedLM

from danlu.core.errors import ModelError
from danlu.models.archs.bert import plugin as bert
from danlu.models.archs.roberta import plugin as roberta
from danlu.models.archs.xlm_roberta import plugin as xlm_roberta
from danlu.models.attention import AttentionConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.load import load_model
from tests.models.cases.encoders import CASES
from tests.models.peer import some_ids

pytestmark = pytest.mark.usefixtures("one_thread")
BASE_CHINESE: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "directionality": "bidi",
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform", "type_vocab_size": 2, "vocab_size": 21128,
}  # fmt: skip
XLM_R: dict[str, Any] = {
    "architectures": ["XLMRobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514,
    "model_type": "xlm-roberta", "num_attention_heads": 12, "num_hidden_layers": 12, "output_past": True,
    "pad_token_id": 1, "position_embedding_type": "absolute", "transformers_version": "4.17.0.dev0",
    "type_vocab_size": 1, "use_cache": True, "vocab_size": 250002,
}  # fmt: skip


def test_the_config_of_bert_base_chinese_is_read() -> None:
    config = bert.read_config(BASE_CHINESE)
    mixer, tokens = config.stack.layers[0].mixer, config.tower.input
    assert isinstance(mixer, AttentionConfig)
    assert isinstance(tokens, TokensConfig)
    assert (config.width, config.num_layers, mixer.num_heads, config.context_length) == (768, 12, 12, 512)
    assert (mixer.dropout, config.stack.dropout, tokens.dropout, tokens.num_types) == (0.1, 0.1, 0.1, 2)
    assert isinstance(config.head, LMHeadConfig)
    with torch.device("meta"):
        network = config.make()
    seen = {id(weight): weight.numel() for weight in network.parameters()}
    assert sum(seen.values()) == 102_290_312  # 102,267,648 of the bare encoder - the pooler + the masked-language head


def test_positions_of_xlm_roberta_begin_behind_the_padding_id() -> None:
    config = xlm_roberta.read_config(XLM_R)
    tokens = config.tower.input
    assert isinstance(tokens, TokensConfig)
    assert (tokens.num_positions, tokens.position_offset, config.context_length) == (514, 2, 512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "config.json: is_decoder is True. Only False is supported so far."),
        ({"add_cross_attention": True}, "config.json: add_cross_attention is True."),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'. Only 'absolute'"),
        ({"tie_word_embeddings": False}, "config.json: tie_word_embeddings is False."),
        ({"hidden_act": "mish"}, "config.json: hidden_act is 'mish'."),
        ({"num_attention_heads": 7}, "7 heads cannot share a width of 768"),
        ({"architectures": ["BertLMHeadModel"]}, "an encoder '…LMHeadModel' is not supported. Known: ForMaskedLM"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "architectures is ['BertForNextSentencePrediction']"),
        ({"hiden_size": 768}, "unknown key 'hiden_size'. Did you mean 'hidden_size'?"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    for family, theirs in ((bert, BASE_CHINESE), (roberta, {**XLM_R, "model_type": "roberta"})):
        if "architectures" in changes and family is roberta:
            continue
        with pytest.raises(ModelError) as error:
            family.read_config({**theirs, **changes})
        assert message in str(error.value)


def test_heads_are_those_that_architectures_names() -> None:
    labels = {"id2label": {"1": "no", "0": "yes"}, "classifier_dropout": 0.3}
    config = bert.read_config({**BASE_CHINESE, "architectures": ["BertForSequenceClassification"], **labels})
    assert isinstance(config.head, ClassifyConfig)
    assert (config.head.labels, config.head.dropout, config.head.multi_label) == (("yes", "no"), 0.3, False)
    config = bert.read_config({**BASE_CHINESE, "architectures": ["BertForTokenClassification"], **labels})
    assert config.head == TagConfig(labels=("yes", "no"), dropout=0.3)
    config = bert.read_config({**BASE_CHINESE, "architectures": ["BertModel"]})
    assert isinstance(config.head, EmbedConfig)
    single = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    head = bert.read_config({**BASE_CHINESE, **single}).head
    assert isinstance(head, ClassifyConfig)
    assert head.multi_label


def test_old_files_with_gamma_beta_position_ids_and_another_head_load(tmp_path: Path) -> None:
    case = CASES["bert"]
    torch.manual_seed(0)
    whole = BertForPreTraining(BertConfig(**case.numbers)).eval()
    whole.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for n, tensor in tensors.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(40).unsqueeze(0)
    save_file(old, tmp_path / "model.safetensors")
    config = (tmp_path / "config.json").read_text().replace("BertForPreTraining", "BertForMaskedLM")
    (tmp_path / "config.json").write_text(config)
    model = load_model(tmp_path, precision="fp32")
    assert model.unused == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    )
    ids = some_ids(9, vocabulary=100)
    with torch.no_grad():
        ours = model.network.logits(model.network.rows(torch.tensor(ids), [9]))
        theirs = whole(torch.tensor([ids])).prediction_logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "peer"), [("bert", BertForMaskedLM), ("roberta", RobertaForMaskedLM)])
def test_a_bare_encoder_written_without_its_pooler_gives_hidden_states(tmp_path: Path, name: str, peer: Any) -> None:
    whole = CASES[name].make()
    assert isinstance(whole, peer)
    bare = getattr(whole, name)
    bare.save_pretrained(tmp_path)
    model = load_model(tmp_path, precision="fp32")
    assert model.config.head is None
    ids = [i + 2 for i in some_ids(9, vocabulary=90)]
    with torch.no_grad():
        theirs = bare(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(model.network.rows(torch.tensor(ids), [9]), theirs, atol=1e-4, rtol=1e-4)


def test_a_masked_model_opened_as_a_bare_encoder_leaves_its_head_alone(tmp_path: Path) -> None:
    CASES["bert"].make().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace("BertForMaskedLM", "BertModel")
    (tmp_path / "config.json").write_text(config)
    model = load_model(tmp_path, precision="fp32")
    assert model.config.head is None
    assert "cls.predictions.bias" in model.unused
    BertModel.from_pretrained(tmp_path)
