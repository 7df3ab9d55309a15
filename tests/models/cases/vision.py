"""Models that read images, and pairs of images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from danlu.models.heads.embed import EmbedHead
from danlu.models.model import Model
from danlu.models.pair import PairNetwork, read_images
from tests.models.case import Case

END = 99
"""The end-of-text token of text towers."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES: dict[str, Any] = {**SIZES, "image_size": 12, "patch_size": 4}
TEXTS: dict[str, Any] = {
    **SIZES,
    "hidden_size": 24,
    "vocab_size": 100,
    "max_position_embeddings": 12,
    "bos_token_id": 98,
    "eos_token_id": END,
}


class Images:
    """Images in a batch; compared is what ``answer`` of theirs holds."""

    def __init__(self, answer: str = "logits", size: tuple[int, int] = (12, 12), **extra: Any) -> None:
        self.answer = answer
        self.size = size
        self.extra = extra

    def rows(self, case: Case) -> list[Tensor]:
        """Three images."""
        return list(torch.randn(3, 3, *self.size, generator=torch.Generator().manual_seed(7)))

    @torch.no_grad()
    def theirs(self, case: Case, peer: PreTrainedModel, rows: Sequence[Tensor], side: str) -> list[Tensor]:
        return list(getattr(peer(pixel_values=torch.stack(list(rows)), **self.extra), self.answer).flatten(1))

    @torch.no_grad()
    def ours(self, model: Model, rows: Sequence[Tensor]) -> list[Tensor]:
        out = read_images(model.network, torch.stack(list(rows)))
        return list(out.view(len(rows), -1))


class ConvCase(Case):
    """A net with batch norms, whose statistics are random too."""

    @torch.no_grad()
    def make(self, seed: int = 0) -> PreTrainedModel:
        """Their model, in inference."""
        peer = super().make(seed)
        for name, buffer in peer.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
        return peer


class Texts:
    """Texts that end with the end token: theirs padded with it, ours not padded."""

    lengths = (4, 12, 2)

    def rows(self, case: Case) -> list[list[int]]:
        """Rows with one end token, at the end."""
        generator = torch.Generator().manual_seed(5)
        return [[*torch.randint(98, (length - 1,), generator=generator).tolist(), END] for length in self.lengths]

    def padded(self, rows: Sequence[list[int]]) -> Tensor:
        """(B, T)."""
        return torch.tensor([row + [END] * (max(self.lengths) - len(row)) for row in rows])

    @torch.no_grad()
    def theirs(self, case: Case, peer: Any, rows: Sequence[list[int]], side: str) -> list[Tensor]:
        return list(peer(input_ids=self.padded(rows)).text_embeds)

    @torch.no_grad()
    def ours(self, model: Model, rows: Sequence[list[int]]) -> list[Tensor]:
        network, lengths = model.network, [len(row) for row in rows]
        assert isinstance(network.head, EmbedHead)
        return list(network.head(network.rows(torch.tensor([i for row in rows for i in row]), lengths), lengths))


class Pairs(Texts):
    """Each row is an image and a text; compared are the logit of both and their vectors."""

    def __init__(self, lengths: tuple[int, ...] = (4, 12, 2)) -> None:
        self.lengths = lengths

    def rows(self, case: Case) -> list[Any]:
        """Pairs."""
        return list(zip(Images().rows(case), super().rows(case), strict=True))

    @torch.no_grad()
    def theirs(self, case: Case, peer: Any, rows: Sequence[Any], side: str) -> list[Tensor]:
        images = torch.stack([image for image, _ in rows])
        out = peer(input_ids=self.padded([text for _, text in rows]), pixel_values=images)
        return list(torch.cat([out.logits_per_image.diagonal().unsqueeze(1), out.image_embeds, out.text_embeds], dim=1))

    @torch.no_grad()
    def ours(self, model: Any, rows: Sequence[Any]) -> list[Tensor]:
        network: PairNetwork = model.network
        texts = [text for _, text in rows]
        first = network.embed_images(torch.stack([image for image, _ in rows]))
        second = network.embed_texts(torch.tensor([i for row in texts for i in row]), [len(row) for row in texts])
        return list(torch.cat([network.head(first, second).diagonal().unsqueeze(1), first, second], dim=1))


def vision(config: Any, peer: Any, compare: Any, **changes: Any) -> Case:
    """A model that reads images. Its linears have other names in memory than in files, so peft is not asked."""
    return Case(config=config, peer=peer, numbers={**IMAGES, **changes}, compare=compare, lora=False)


def pair(config: Any, peer: Any, compare: Any, text: Any, **changes: Any) -> Case:
    """Two towers."""
    numbers = {"text_config": {**TEXTS, **text}, "vision_config": IMAGES, **changes}
    return Case(config=config, peer=peer, numbers=numbers, compare=compare, lora=False)


def convnet(config: Any, peer: Any, answer: str = "logits", **numbers: Any) -> Case:
    """A convolutional net, on images whose sides no stride divides."""
    return ConvCase(config=config, peer=peer, numbers=numbers, compare=Images(answer, size=(37, 50)), lora=False)


RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [2, 1, 2], "num_labels": 3}
MOBILENET: dict[str, Any] = {"depth_multiplier": 0.25, "num_labels": 3}

CASES: dict[str, Case] = {
    "vit": vision(ViTConfig, ViTForImageClassification, Images(), num_labels=5),
    "vit-unbiased": vision(ViTConfig, ViTForImageClassification, Images(), num_labels=5, qkv_bias=False),
    "vit-model": vision(ViTConfig, ViTModel, Images("pooler_output"), pooler_act="relu"),
    "vit-larger-image": vision(
        ViTConfig, ViTForImageClassification, Images(size=(23, 33), interpolate_pos_encoding=True), num_labels=5
    ),
    "clip-vision": vision(CLIPVisionConfig, CLIPVisionModel, Images("pooler_output")),
    "clip-vision-projected": vision(
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Images("image_embeds", size=(8, 20), interpolate_pos_encoding=True),
        projection_dim=20,
    ),
    "clip-text": Case(
        config=CLIPTextConfig,
        peer=CLIPTextModelWithProjection,
        numbers={**TEXTS, "projection_dim": 20},
        compare=Texts(),
        lora=False,
    ),
    "clip-text-old-end": Case(
        config=CLIPTextConfig,
        peer=CLIPTextModelWithProjection,
        numbers={**TEXTS, "projection_dim": 20, "eos_token_id": 2},
        compare=Texts(),
        lora=False,
    ),
    "clip": pair(CLIPConfig, CLIPModel, Pairs(), {}, projection_dim=20),
    "siglip-vision": vision(
        SiglipVisionConfig, SiglipVisionModel, Images("pooler_output", size=(17, 12), interpolate_pos_encoding=True)
    ),
    "siglip-vision-bare": vision(
        SiglipVisionConfig, SiglipVisionModel, Images("last_hidden_state"), vision_use_head=False
    ),
    "siglip": pair(SiglipConfig, SiglipModel, Pairs((12, 12, 12)), {"projection_size": 32}),
}

CONVNETS: dict[str, Case] = {
    "resnet-basic": convnet(ResNetConfig, ResNetForImageClassification, **RESNET, layer_type="basic"),
    "resnet": convnet(ResNetConfig, ResNetForImageClassification, **RESNET),
    "resnet-model": convnet(
        ResNetConfig, ResNetModel, "pooler_output", **RESNET,
        downsample_in_bottleneck=True, downsample_in_first_stage=True,
    ),
    "mobilenet-v2": convnet(MobileNetV2Config, MobileNetV2ForImageClassification, **MOBILENET),
    "mobilenet-v2-torch": convnet(MobileNetV2Config, MobileNetV2ForImageClassification, **MOBILENET, tf_padding=False),
    "mobilenet-v2-dilated": convnet(MobileNetV2Config, MobileNetV2Model, "pooler_output", **MOBILENET, output_stride=8),
    "mobilenet-v2-dilated-torch": convnet(
        MobileNetV2Config, MobileNetV2Model, "pooler_output", depth_multiplier=0.5,
        output_stride=16, tf_padding=False, first_layer_is_expansion=False, finegrained_output=False,
    ),
}  # fmt: skip
"""Nets without blocks: adapters, which are for blocks, are not asked of them (tests/contracts/test_convnets.py)."""
