"""Requests to the single-pass lane made ready: checked, tokenised, cut into rows; and the answer when all are read.

Runs in the thread that submits, so that a long text or a large image holds up nobody's step. Knows no queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from danlu.core.errors import DataError, ModelError, RequestError
from danlu.core.records import Usage
from danlu.models import encode
from danlu.models.encode import Row
from danlu.models.heads.classify import ClassifyHead
from danlu.models.images import ImageProcessor, open_image
from danlu.models.inputs.patches import PatchInput
from danlu.models.model import Model
from danlu.models.pair import PairNetwork
from danlu.models.vision import ranked, reads_images
from danlu.serve.engine.abilities import abilities, reads_texts
from danlu.serve.engine.request import Reading, ReadRequest, Text

Piece = Row | Tensor
"""What a pass reads: a row of ids, or the pixels of an image (C, height, width)."""
Finish = Callable[[list[Tensor], Usage], Reading]
"""Makes the answer of what passes made of the pieces, in their order, in fp32."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_PIXELS_A_TOKEN = 16 * 16
"""A convolutional net is counted as if it read squares of this many pixels."""
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""What models call the prompt of what is searched in; that of questions is called "query"."""


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """How much one request may bring."""

    max_texts: int = 4096
    """Texts, pairs or images."""
    max_characters: int = 4_000_000
    """Characters of all texts together."""
    max_images: int = 64
    """Images: they are unpacked while they wait."""
    max_image_bytes: int = 20_000_000
    """Size of an image file."""
    max_image_pixels: int = 50_000_000
    """Width times height of an image: a small file can hold a very large one."""


@dataclass(frozen=True, kw_only=True)
class PreparedRead:
    """A request that is ready to queue."""

    pieces: Sequence[Piece]
    """What is read, each one once."""
    costs: Sequence[int]
    """Tokens of each piece, special ones counted; patches of an image."""
    finish: Finish
    """Makes the answer."""
    num_tokens: int = field(init=False)
    """Sum of ``costs``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", sum(self.costs))


class ReadPreparer:
    """Makes requests to one model ready. Thread-safe."""

    def __init__(
        self, model: Model, name: str, processor: ImageProcessor | None = None, limits: ReadLimits | None = None
    ) -> None:
        """``processor`` prepares images, for models that take them."""
        self._model = model
        self._name = name
        self._processor = processor
        self._limits = limits or ReadLimits()
        self._abilities = abilities(model)

    def prepare(self, request: ReadRequest) -> PreparedRead:
        """Raises RequestError 400 or 413 for what the model cannot do or read."""
        self._check(request)
        try:
            if request.images:
                return self._images(request)
            if request.task == "embed":
                return self._embed(request)
            if request.task == "tag":
                return self._tag(request)
            return self._score(request) if request.task == "score" else self._classify(request)
        except (ModelError, DataError) as error:
            raise RequestError(error.message, error.hint) from error

    def _check(self, request: ReadRequest) -> None:
        limits = self._limits
        if request.task not in self._abilities:
            can = ", ".join(sorted(self._abilities)) or "nothing"
            raise RequestError(
                f"'{self._name}' cannot {request.task}.", f"It can: {can}.", code="unsupported_task", param="model"
            )
        if bool(request.texts) == bool(request.images):
            what = "both texts and images" if request.texts else "nothing to read"
            raise RequestError(f"The request has {what}.", "Give one or more texts, or images.", param="input")
        if request.prompt is not None and request.task not in ("embed", "score"):
            raise RequestError(
                f"The prompt '{request.prompt}' is given to {request.task}.", "Leave it out.", param="prompt"
            )
        if len(request.texts) > limits.max_texts:
            raise _too_much(f"{len(request.texts)} texts", f"{limits.max_texts} or fewer")
        size = sum(_size(text) for text in request.texts)
        if size > limits.max_characters:
            raise _too_much(f"{size:,} characters", f"{limits.max_characters:,} or fewer")
        for number, text in enumerate(request.texts):
            _check_unicode(number, text)

    # tasks

    def _embed(self, request: ReadRequest) -> PreparedRead:
        self._needs_texts()
        rows = encode.embed_rows(self._model, request.texts, prompt=request.prompt, truncate=request.truncates)
        return _of_rows(rows, self._vectors)

    def _classify(self, request: ReadRequest) -> PreparedRead:
        self._needs_texts()
        rows = encode.encode_texts(self._model, request.texts, truncate=request.truncates)

        def finish(outputs: list[Tensor], usage: Usage) -> Reading:
            found = encode.labels_of(self._model, outputs)
            return Reading(usage=usage, labels=tuple(tuple((s.label, s.probability) for s in one) for one in found))

        return _of_rows(rows, finish)

    def _tag(self, request: ReadRequest) -> PreparedRead:
        texts: list[str] = []
        for number, text in enumerate(request.texts):
            if not isinstance(text, str):
                what = "a pair" if isinstance(text, tuple) else "a list of token ids"
                raise RequestError(f"Text {number} is {what}.", "Tagging reads single texts.", param="input")
            texts.append(text)
        rows, offsets = encode.tag_rows(self._model, texts, truncate=request.truncates)

        def finish(outputs: list[Tensor], usage: Usage) -> Reading:
            found = encode.spans_of(self._model, texts, offsets, outputs)
            return Reading(
                usage=usage, spans=tuple(tuple((s.label, s.start, s.end, s.score) for s in one) for one in found)
            )

        return _of_rows(rows, finish)

    def _score(self, request: ReadRequest) -> PreparedRead:
        pairs: list[tuple[str, str]] = []
        for number, text in enumerate(request.texts):
            if not isinstance(text, tuple):
                raise RequestError(f"Text {number} is no pair.", "Scoring reads pairs: a query and a document.")
            pairs.append(text)
        if "embed" in self._abilities:
            return self._score_by_vectors(pairs, request)
        rows = encode.encode_texts(self._model, pairs, truncate=request.truncates)

        def finish(outputs: list[Tensor], usage: Usage) -> Reading:
            return Reading(usage=usage, scores=tuple(encode.relevance_of(self._model, outputs).tolist()))

        return _of_rows(rows, finish)

    def _score_by_vectors(self, pairs: Sequence[tuple[str, str]], request: ReadRequest) -> PreparedRead:
        """Cosines; each text is read once, with the prompt that the model has for its side."""
        known = {} if self._model.sentence is None else self._model.sentence.prompts
        for_query = request.prompt or ("query" if "query" in known else None)
        for_document = next((name for name in _DOCUMENT_PROMPTS if name in known), None)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        documents = list(dict.fromkeys(document for _, document in pairs))
        rows = [
            *encode.embed_rows(self._model, queries, prompt=for_query, truncate=request.truncates),
            *encode.embed_rows(self._model, documents, prompt=for_document, truncate=request.truncates),
        ]
        first = {query: place for place, query in enumerate(queries)}
        second = {document: place for place, document in enumerate(documents, start=len(queries))}

        def finish(outputs: list[Tensor], usage: Usage) -> Reading:
            vectors = torch.nn.functional.normalize(encode.vectors_of(self._model, outputs), dim=-1)
            left = vectors[[first[query] for query, _ in pairs]]
            right = vectors[[second[document] for _, document in pairs]]
            return Reading(usage=usage, scores=tuple((left * right).sum(dim=-1).tolist()))

        return _of_rows(rows, finish)

    def _images(self, request: ReadRequest) -> PreparedRead:
        limits, model = self._limits, self._model
        if not reads_images(model) or self._processor is None:
            raise RequestError(f"'{self._name}' takes no images.", "Give texts, or ask another model.", param="input")
        if request.task not in ("embed", "classify"):
            raise RequestError(f"'{self._name}' cannot {request.task} images.", "Give texts.", param="input")
        if len(request.images) > limits.max_images:
            raise _too_much(f"{len(request.images)} images", f"{limits.max_images} or fewer")
        pixels = [self._unpacked(number, image) for number, image in enumerate(request.images)]
        return PreparedRead(
            pieces=pixels,
            costs=[image_cost(model, image) for image in pixels],
            finish=self._vectors if request.task == "embed" else self._image_labels,
        )

    def _unpacked(self, number: int, image: bytes) -> Tensor:
        """Pixels as the model wants them: (C, height, width)."""
        limits = self._limits
        if len(image) > limits.max_image_bytes:
            raise _too_much(f"{len(image):,} bytes in image {number}", f"{limits.max_image_bytes:,} or fewer")
        assert self._processor is not None
        try:
            opened = open_image(image, formats=_FORMATS, max_pixels=limits.max_image_pixels)
            return self._processor([opened])[0]
        except DataError as error:
            raise RequestError(f"Image {number}: {error.message}", error.hint, param="input") from error

    def _vectors(self, outputs: list[Tensor], usage: Usage) -> Reading:
        vectors = encode.vectors_of(self._model, outputs)
        return Reading(usage=usage, vectors=vectors.numpy().astype("<f4").tobytes(), width=vectors.shape[1])

    def _image_labels(self, outputs: list[Tensor], usage: Usage) -> Reading:
        head = self._model.network.head
        assert isinstance(head, ClassifyHead)
        found = [ranked(head.config.labels, row, None) for row in head.probabilities(torch.stack(outputs))]
        return Reading(usage=usage, labels=tuple(tuple(one.items()) for one in found))

    def _needs_texts(self) -> None:
        if not reads_texts(self._model):
            raise RequestError(f"'{self._name}' reads images, no texts.", "Give images.", param="input")


def image_cost(model: Model, pixels: Tensor) -> int:
    """Tokens that an image (C, height, width) counts as. Raises DataError for one that the model cannot read."""
    network = model.network
    entry = (network.image if isinstance(network, PairNetwork) else network).embedding
    (length,) = entry.lengths(pixels.unsqueeze(0))  # pyright: ignore
    return length if isinstance(entry, PatchInput) else max(1, pixels[0].numel() // _PIXELS_A_TOKEN)


def _of_rows(rows: Sequence[Row], finish: Finish) -> PreparedRead:
    return PreparedRead(pieces=rows, costs=[len(ids) for ids, _ in rows], finish=finish)


def _size(text: Text) -> int:
    return len(text[0]) + len(text[1]) if isinstance(text, tuple) else len(text)


def _check_unicode(number: int, text: Text) -> None:
    """Half a character (a lone surrogate) is no text, and no tokenizer reads it."""
    for part in text if isinstance(text, tuple) else (text,):
        if isinstance(part, str) and not part.isascii():
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"Text {number} is no valid Unicode at character {error.start}.", "Send whole characters.",
                    param="input",
                ) from error  # fmt: skip


def _too_much(what: str, limit: str) -> RequestError:
    return RequestError(f"The request has {what}.", f"Send {limit} at once.", status=413, param="input")
