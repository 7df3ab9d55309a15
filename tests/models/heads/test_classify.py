"""Classifier, tagger, embedder and the transform before them, by hand."""

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.norms import NormConfig
from danlu.models.transform import Transform, TransformConfig

HIDDEN = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def set_to(linear: torch.nn.Linear, weight: list[list[float]], bias: list[float] | None = None) -> None:
    linear.weight = torch.nn.Parameter(torch.tensor(weight))
    if bias is not None:
        linear.bias = torch.nn.Parameter(torch.tensor(bias))


def test_a_row_is_pooled_transformed_and_read_by_one_linear() -> None:
    config = ClassifyConfig(labels=("a", "b", "c"), transform=TransformConfig(activation="relu"))
    head = config.make(2).requires_grad_(False)
    assert head.transform is not None
    set_to(head.transform.dense, [[1.0, 0.0], [0.0, -1.0]], [0.0, 0.5])  # (1, 2) → relu(1, -1.5)
    set_to(head.linear, [[1.0, 0.0], [2.0, 1.0], [-1.0, 5.0]], [0.0, 0.0, 1.0])
    logits = head(HIDDEN, [2, 1])
    assert logits.tolist() == [[1.0, 2.0, 0.0], [5.0, 10.0, -4.0]]
    torch.testing.assert_close(head.probabilities(logits), logits.softmax(-1))


def test_independent_labels_have_independent_probabilities() -> None:
    head = ClassifyConfig(labels=("a", "b"), multi_label=True).make(2)
    assert head.probabilities(torch.tensor([[0.0, 0.0]])).tolist() == [[0.5, 0.5]]


def test_a_tagger_reads_every_token() -> None:
    head = TagConfig(labels=("O", "X")).make(2).requires_grad_(False)
    set_to(head.linear, [[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0])
    assert head(HIDDEN).tolist() == [[3.0, -1.0], [7.0, -1.0], [11.0, -1.0]]


def test_an_embedding_is_pooled_projected_and_brought_to_length_one() -> None:
    head = EmbedConfig(pooling="mean", projection=2).make(2).requires_grad_(False)
    assert head.projection is not None
    set_to(head.projection, [[3.0, 0.0], [0.0, 0.0]])
    assert head(HIDDEN, [2, 1]).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_a_transform_is_dense_activation_norm() -> None:
    norm = NormConfig(kind="layer", epsilon=1e-5, bias=True)
    layer = Transform(TransformConfig(activation="gelu", norm=norm), 2).requires_grad_(False)
    expected = torch.nn.functional.layer_norm(torch.nn.functional.gelu(layer.dense(HIDDEN)), (2,), eps=1e-5)
    torch.testing.assert_close(layer(HIDDEN), expected)


def test_dropout_of_heads_works_in_training_only() -> None:
    torch.manual_seed(0)
    for config in (ClassifyConfig(labels=("a", "b"), dropout=0.5), TagConfig(labels=("a", "b"), dropout=0.5)):
        head = config.make(64)
        rows = () if isinstance(config, TagConfig) else ([2, 1],)
        hidden = torch.randn(3, 64)
        assert not torch.equal(head.train()(hidden, *rows), head(hidden, *rows))
        assert torch.equal(head.eval()(hidden, *rows), head(hidden, *rows))


def test_a_head_without_labels_is_refused() -> None:
    with pytest.raises(ModelError, match="A classifier has no labels"):
        ClassifyConfig(labels=())
    with pytest.raises(ModelError, match="A tagger has no labels"):
        TagConfig(labels=())
