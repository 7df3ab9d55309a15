"""Models that read images, from Python: classify, embed, and compare with texts. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.heads.classify import ClassifyHead
from danlu.models.images import AnyImage, ImageProcessor
from danlu.models.model import Model
from danlu.models.network import Network
from danlu.models.pair import PairNetwork, pad_text, read_images
from danlu.text.tokenizer import TextTokenizer

BATCH = 32
"""Images, or texts, that run together."""


def reads_images(model: Model) -> bool:
    """Whether images come in (beside texts, for pairs)."""
    return isinstance(model.network, PairNetwork) or hasattr(model.network.embedding, "lengths")


class ImageModel:
    """A network that reads images, how they are prepared, and for pairs how texts are read."""

    def __init__(
        self, network: Network | PairNetwork, processor: ImageProcessor, tokenizer: TextTokenizer | None = None
    ) -> None:
        self.network = network
        self.processor = processor
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, model: Model, folder: Path) -> ImageModel:
        """A loaded model and the preprocessing that lies in its folder; raises ModelError when it reads no images."""
        if not reads_images(model):
            raise ModelError(
                f"{folder} is a model of {model.architecture.model_type}: it reads no images.", "Use danlu.load."
            )
        processor = ImageProcessor.of_folder(folder)
        return cls(model.network, processor, model.chat.tokenizer if model.has_tokenizer else None)

    @torch.inference_mode()
    def classify(self, images: Sequence[AnyImage], *, top: int | None = None) -> list[dict[str, float]]:
        """Labels of each image with their probabilities, the likeliest first; ``top`` keeps so many."""
        head = self.network.head
        if not isinstance(self.network, Network) or not isinstance(head, ClassifyHead):
            raise ModelError("This model has no labels of its own.", "Use choose(images, texts) with texts of yours.")
        probabilities = torch.cat([head.probabilities(out) for out in self._outputs(images)])
        return [ranked(head.config.labels, row, top) for row in probabilities]

    @torch.inference_mode()
    def embed(self, images: Sequence[AnyImage]) -> Tensor:
        """One vector an image: (B, P) in fp32."""
        if isinstance(self.network, Network) and isinstance(self.network.head, ClassifyHead):
            raise ModelError("A classifier gives no embeddings.", "Use a model without its classification head.")
        return torch.cat(list(self._outputs(images))).float()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """One vector a text, in the space of the images: (B, P) in fp32. Texts too long lose their end."""
        pair = self._pair()
        if not texts:
            raise ModelError("No texts were given.", "Give at least one.")
        vectors: list[Tensor] = []
        for start in range(0, len(texts), BATCH):
            rows = [self._ids(pair, text) for text in texts[start : start + BATCH]]
            ids = torch.tensor([index for row in rows for index in row], device=pair.device)
            vectors.append(pair.embed_texts(ids, [len(row) for row in rows]).float())
        return torch.cat(vectors)

    @torch.inference_mode()
    def logits(self, images: Sequence[AnyImage], texts: Sequence[str]) -> Tensor:
        """How well each text fits each image: (images, texts) in fp32."""
        return self._pair().head(self.embed(images), self.embed_texts(texts))

    def choose(self, images: Sequence[AnyImage], texts: Sequence[str]) -> list[dict[str, float]]:
        """Texts with their probabilities for each image, the likeliest first: classification without training."""
        probabilities = self._pair().head.probabilities(self.logits(images, texts))
        return [ranked(texts, row, None) for row in probabilities]

    def _outputs(self, images: Sequence[AnyImage]) -> Iterator[Tensor]:
        if not images:
            raise ModelError("No images were given.", "Give at least one.")
        network = self.network.image if isinstance(self.network, PairNetwork) else self.network
        for start in range(0, len(images), BATCH):
            yield read_images(network, self.processor(images[start : start + BATCH]).to(network.device))

    def _pair(self) -> PairNetwork:
        if not isinstance(self.network, PairNetwork):
            raise ModelError("This model reads no texts.", "Use a model of image-text pairs: CLIP, SigLIP.")
        return self.network

    def _ids(self, pair: PairNetwork, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ModelError("This model has no tokenizer.", "Put its tokenizer.json into the folder.")
        ids, _ = self.tokenizer.encode_with_specials(text, max_tokens=pair.config.text.context_length)
        return pad_text(ids, pair.config, self.tokenizer.pad_id)


def ranked(labels: Sequence[str], probabilities: Tensor, top: int | None) -> dict[str, float]:
    """Labels with their probabilities (C,), the likeliest first.

    Classes of the same name count as one (ImageNet has two cranes).
    """
    together: dict[str, float] = {}
    for label, value in zip(labels, probabilities.tolist(), strict=True):
        together[str(label)] = together.get(str(label), 0.0) + value
    return dict(sorted(together.items(), key=lambda pair: -pair[1])[:top])
