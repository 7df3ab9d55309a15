"""What convolutional families have in common: an empty stack under mean pooling, and names of convolution and norm."""

from __future__ import annotations

from danlu.core.errors import ModelError
from danlu.models.archs._keys import Keys
from danlu.models.block import StackConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.inputs.convnet import ConvNetConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convnet_model(keys: Keys, net: ConvNetConfig, dropout: float = 0.0) -> ModelConfig:
    """The net, no blocks, and the mean over the last grid as what is classified, or as embedding."""
    stack = StackConfig(width=net.width, layers=(), norm=NormConfig(), context_length=1 << 20, final_norm=False)
    head: HeadConfig
    kind = keys.head("ForImageClassification")
    if kind == "ForImageClassification":
        labels = keys.labels()
        independent = keys.has_independent_labels(labels)
        head = ClassifyConfig(labels=labels, pooling="mean", dropout=dropout, multi_label=independent)
    elif kind == "Model":
        head = EmbedConfig(pooling="mean", normalise=False)
    else:
        raise ModelError(
            f"config.json: a convolutional net '…{kind}' is not supported.", "Known: ForImageClassification, Model."
        )
    return ModelConfig(tower=TowerConfig(input=net, stack=stack), head=head)


def conv_weights(ours: str, theirs: str) -> dict[str, Source]:
    """One convolution with its norm and the norm's statistics."""
    names = {f"{ours}.convolution.weight": rows(f"{theirs}.convolution.weight")}
    return names | {f"{ours}.norm.{kind}": rows(f"{theirs}.normalization.{kind}") for kind in _NORM}
