"""New heads on old bodies: what is saved is a model of its family, to us and to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto import modeling_auto

from danlu.core.errors import ConfigError, ModelError
from danlu.models.checkpoint import core_config, find_architecture
from danlu.models.heads.classify import ClassifyHead
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.quant import Int8Linear
from danlu.models.rehead import (
    _ABSENT,  # pyright: ignore[reportPrivateUsage]
    NewClassifier,
    NewEmbedder,
    NewHead,
    NewScorer,
    NewTagger,
    with_head,
)
from danlu.models.save import save_model
from tests.models.case import Case, save_peer
from tests.models.cases.encoders import First
from tests.models.cases.vision import CONVNETS
from tests.models.families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("bad", "good", "unsure")
CLASSES, TAGS = NewClassifier(labels=LABELS), NewTagger(labels=("O", "B-LOC", "I-LOC"))
ENDINGS = {
    NewClassifier: "ForSequenceClassification", NewScorer: "ForSequenceClassification",
    NewTagger: "ForTokenClassification",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: save_peer(FAMILIES[name].make(), tmp_path_factory.mktemp(name))
        for name in ("bert", "bert-model", "llama-tied", "vit", "modernbert")
    }


def model_of(name: str, tmp_path: Path) -> tuple[Case, Model]:
    case = FAMILIES[name] if name in FAMILIES else CONVNETS[name]
    return case, load_model(save_peer(case.make(), tmp_path / "base"), precision="fp32")


def loaded_by_transformers(folder: Path, auto: str) -> Any:
    """Their model; nothing may be missing, left over or misshapen."""
    peer, found = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(found.values()), found
    return peer.eval()


def ours(case: Case, model: Model) -> list[Tensor]:
    return case.compare.ours(model, case.compare.rows(case))


def same(first: list[Tensor], second: list[Tensor], atol: float = 1e-4) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.abs().max() > 1e-3, "an answer of zeros proves nothing"
        torch.testing.assert_close(one, other, atol=atol, rtol=atol)


FROM = [
    "bert", "bert-tag", "bert-classify", "roberta", "xlm-roberta-rank", "distilbert", "distilbert-model", "modernbert",
    "modernbert-model", "llama", "llama-tied", "qwen2", "qwen3", "gemma2", "mistral", "phi3", "gpt2", "mixtral",
]  # fmt: skip


@pytest.mark.parametrize("wanted", [CLASSES, TAGS, NewScorer()], ids=["classify", "tag", "score"])
@pytest.mark.parametrize("name", FROM)
def test_transformers_and_we_load_what_is_saved_and_answer_alike(name: str, wanted: NewHead, tmp_path: Path) -> None:
    case, base = model_of(name, tmp_path)
    case = Case(**{**vars(case), "compare": First() if type(case.compare).__name__ == "Encoded" else case.compare})
    model = with_head(base, wanted, seed=3)
    with torch.no_grad():  # away from where they begin, and larger than 0.02
        for parameter in model.network.head.parameters():  # pyright: ignore[reportOptionalMemberAccess]
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", precision="fp32")
    assert again.config == model.config
    same(ours(case, again), ours(case, model), 0.0)
    peer = loaded_by_transformers(tmp_path / "saved", f"AutoModel{ENDINGS[type(wanted)]}")
    same(case.compare.theirs(case, peer, case.compare.rows(case), "right"), ours(case, model))
    if not isinstance(wanted, NewScorer):
        assert tuple(peer.config.id2label.values()) == wanted.labels  # pyright: ignore[reportAttributeAccessIssue]
        assert peer.config.label2id[peer.config.id2label[1]] == 1


@pytest.mark.parametrize("name", ["vit", "vit-model", "resnet-model", "siglip"])
def test_what_reads_images_takes_a_classifier(name: str, tmp_path: Path) -> None:
    _, base = model_of(name, tmp_path)
    model = with_head(base, CLASSES)
    save_model(model, tmp_path / "saved")
    peer = loaded_by_transformers(tmp_path / "saved", "AutoModelForImageClassification")
    size = model.network.embedding.config.image_size if "resnet" not in name else (32, 32)  # pyright: ignore
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    lengths = model.network.embedding.lengths(images)  # pyright: ignore
    with torch.no_grad():
        mine = model.network.head(model.network.rows(images, lengths), lengths)  # pyright: ignore
        torch.testing.assert_close(mine, peer(pixel_values=images).logits, atol=1e-4, rtol=1e-4)


def test_a_vector_a_text_is_the_mean_of_what_transformers_gives(tmp_path: Path) -> None:
    for name in ("bert", "llama-tied", "qwen3", "roberta"):
        case, base = model_of(name, tmp_path / name)
        model = with_head(base, NewEmbedder(normalise=False))
        save_model(model, tmp_path / name / "saved")
        again = load_model(tmp_path / name / "saved", precision="fp32")
        assert again.sentence == model.sentence
        assert again.sentence is not None
        peer = transformers.AutoModel.from_pretrained(tmp_path / name / "saved", dtype=torch.float32).eval()
        rows = case.compare.rows(case)
        lengths = [len(row) for row in rows]
        with torch.no_grad():
            ids = torch.tensor([i for row in rows for i in row])
            mine = list(again.network.head(again.network.rows(ids, lengths), lengths))  # pyright: ignore
            same(mine, [peer(torch.tensor([row])).last_hidden_state[0].mean(dim=0) for row in rows])


def test_an_encoder_decoder_becomes_an_embedder_by_its_encoder(tmp_path: Path) -> None:
    _, base = model_of("t5", tmp_path)
    encoder = base.network.encoder  # pyright: ignore[reportAttributeAccessIssue]
    model = with_head(base, NewEmbedder())
    assert model.theirs["architectures"] == ["T5EncoderModel"]
    ids = torch.tensor([5, 6, 7])
    with torch.no_grad():
        assert torch.equal(model.network.rows(ids, [3]), encoder.rows(ids, [3]))


# ---- how a head begins -----------------------------------------------------------------------------------------------


def test_it_begins_near_zero_and_as_its_seed_says(folders: dict[str, Path]) -> None:
    first, again, other = (
        with_head(load_model(folders["bert"], precision="fp32"), CLASSES, seed=seed).network.head for seed in (1, 1, 2)
    )
    assert isinstance(first, ClassifyHead)
    assert isinstance(again, ClassifyHead)
    assert isinstance(other, ClassifyHead)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)
    assert not first.linear.bias.any()
    assert first.transform is not None
    assert float(first.transform.dense.weight.std()) == pytest.approx(0.02, rel=0.1)  # (32, 32) draws


def test_a_pooler_that_the_model_has_is_kept(folders: dict[str, Path]) -> None:
    base = load_model(folders["bert-model"], precision="fp32")
    pooler = base.network.head.transform.dense.weight  # pyright: ignore
    model = with_head(base, CLASSES)
    assert model.network.head.transform.dense.weight is pooler  # pyright: ignore


def test_a_pooler_that_only_the_checkpoint_has_is_read_from_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    """bert-base-uncased is a masked language model whose file has the pooler that classifiers want."""
    masked, pooled = (load_file(folders[name] / "model.safetensors") for name in ("bert", "bert-model"))
    pooler = {f"bert.{name}": tensor for name, tensor in pooled.items() if name.startswith("pooler.")}
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    save_file({**masked, **pooler}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = with_head(load_model(tmp_path, precision="fp32"), CLASSES, source=tmp_path)
    dense = model.network.head.transform.dense  # pyright: ignore
    assert torch.equal(dense.weight, pooler["bert.pooler.dense.weight"])
    assert torch.equal(dense.bias, pooler["bert.pooler.dense.bias"])


def test_a_prediction_head_serves_the_classifier_that_reads_it_too(folders: dict[str, Path]) -> None:
    base = load_model(folders["modernbert"], precision="fp32")
    dense = base.network.head.transform.dense  # pyright: ignore
    assert with_head(base, CLASSES).network.head.transform.dense is dense  # pyright: ignore


def test_labels_of_an_old_classifier_are_gone(tmp_path: Path) -> None:
    _, base = model_of("bert-classify", tmp_path)
    old = base.network.head.linear.weight.clone()  # pyright: ignore
    model = with_head(base, CLASSES)
    assert model.network.head.config.labels == LABELS  # pyright: ignore
    assert not torch.equal(model.network.head.linear.weight, old)  # pyright: ignore


def test_a_tied_table_is_left_alone_by_the_new_head(folders: dict[str, Path]) -> None:
    model = with_head(load_model(folders["llama-tied"], precision="fp32"), CLASSES)
    assert not model.config.is_tied
    table = model.network.embedding.tokens.weight  # pyright: ignore
    assert all(parameter is not table for parameter in model.network.head.parameters())  # pyright: ignore
    names = {name for name, _ in model.network.named_parameters()}
    assert {"embedding.tokens.weight", "head.linear.weight"} <= names


def test_an_8_bit_body_keeps_its_8_bits_under_a_plain_head(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = with_head(load_model(folders["llama-tied"], precision="fp32", scheme="int8"), CLASSES)
    assert isinstance(model.network.get_submodule("stack.blocks.0.mixer.inner.qkv"), Int8Linear)
    assert model.network.head.linear.weight.dtype == torch.float32  # pyright: ignore
    save_model(model, tmp_path / "saved")
    case = FAMILIES["llama-tied"]
    same(ours(case, load_model(tmp_path / "saved", precision="fp32")), ours(case, model), 0.02)  # the head becomes int8


def test_labels_that_are_independent_are_sigmoids(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in ("bert", "llama-tied"):
        wanted = NewClassifier(labels=("red", "green"), multi_label=True)
        model = with_head(load_model(folders[name], precision="fp32"), wanted)
        assert model.network.head.probabilities(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]  # pyright: ignore
        save_model(model, tmp_path / name)
        peer = loaded_by_transformers(tmp_path / name, "AutoModelForSequenceClassification")
        assert peer.config.problem_type == "multi_label_classification"
        assert load_model(tmp_path / name, precision="fp32").config == model.config
    one = with_head(load_model(folders["llama-tied"], precision="fp32"), NewScorer())
    assert one.network.head.probabilities(torch.zeros(1, 1)).tolist() == [[0.5]]  # pyright: ignore


def test_modernbert_reads_what_is_asked_for(tmp_path: Path, folders: dict[str, Path]) -> None:
    case = FAMILIES["modernbert-mean"]
    wanted = NewClassifier(labels=LABELS, pooling="mean")
    model = with_head(load_model(folders["modernbert"], precision="fp32"), wanted)
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["classifier_pooling"] == "mean"
    peer = loaded_by_transformers(tmp_path, "AutoModelForSequenceClassification")
    same(case.compare.theirs(case, peer, case.compare.rows(case), "right"), ours(case, model))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("olmo2", TAGS, "A 'olmo2' cannot be made a tagger. Use a model of another family."),
        ("mamba2", CLASSES, "A 'mamba2' cannot be made a classifier."),
        ("t5", CLASSES, "A 't5' cannot be made a classifier."),
        ("bart", NewEmbedder(), "A 'bart' cannot be made a text embedder."),
        ("vit", TAGS, "This model reads no text, which a tagger does. Give it a classifier."),
        ("vit", NewEmbedder(), "This model reads no text, which a text embedder does."),
        (
            "bert",
            NewClassifier(labels=LABELS, pooling="mean"),
            "A 'bert' with classes reads the first token, not the mean of all tokens. Leave pooling out.",
        ),
        ("llama", NewScorer(pooling="first"), "A 'llama' with classes reads the last token, not the first token."),
    ],
)
def test_a_head_that_the_family_does_not_have_is_refused(
    name: str, wanted: NewHead, message: str, tmp_path: Path
) -> None:
    _, base = model_of(name, tmp_path)
    with pytest.raises(ModelError) as error:
        with_head(base, wanted)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), r"labels has 0 names\. Give at least 2\."),
        (("a",), "has 1 names"),
        (("a", "b", "a"), "labels has 'a' twice"),
    ],
)
def test_labels_that_make_no_choice_are_refused(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NewClassifier(labels=labels)
    with pytest.raises(ConfigError, match=message):
        NewTagger(labels=labels)


def test_families_left_out_are_those_that_transformers_has_no_class_for() -> None:
    """Of all families whose config we read with that head."""
    for ending, mapping in (
        ("ForSequenceClassification", modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("ForTokenClassification", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ):
        read = {case.config.model_type for case in FAMILIES.values() if is_read(case, ending)}
        assert {"bert", "llama", "qwen3"} <= read
        assert read - set(mapping) == _ABSENT[ending]


def is_read(case: Case, ending: str) -> bool:
    theirs = {**case.config(**case.numbers).to_diff_dict(), "architectures": [f"X{ending}"]}
    theirs["model_type"] = case.config.model_type
    try:
        core_config(find_architecture(case.config.model_type), theirs)
    except ModelError:
        return False
    return True
