"""Requests that a model answers in one pass: embeddings, ranking, scores, labels and spans.

Knows nothing of how answers are written (see replies/read.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.serve.engine.request import Caller, ReadRequest, ServedModel, Text
from danlu.serve.http.protocol.images import decode_image
from danlu.serve.http.protocol.parse import Int64, TokenId, parse
from danlu.serve.http.protocol.sampling import Asked

Inputs = str | list[str | TokenId | list[TokenId]]


class _Reads(Asked, kw_only=True):
    """What requests that read have in common."""

    truncate_prompt_tokens: Int64 | None = None

    @property
    def _truncates(self) -> bool:
        return True if self.truncate_prompt_tokens is None else self.truncate_prompt_tokens != 0


Pairs = str | list[str | Annotated[list[str], Meta(min_length=2, max_length=2)]]
"""A text, texts, or pairs of texts that the model reads together."""


def _texts(given: Inputs | Pairs | None, where: str, most: int) -> tuple[Text, ...]:
    """Texts, lists of token ids or pairs of texts; ``where`` names the field in errors."""
    if given is None:
        return ()
    if isinstance(given, str):
        texts: list[Any] = [given]
    else:
        kinds = {type(item) for item in given}
        if len(kinds) > 1:
            raise RequestError(
                f"{where} mixes texts and token ids.", "Send a text, texts, token ids, or lists of them.", param=where
            )
        texts = [given] if kinds == {int} else list(given)
    if not texts:
        raise RequestError(f"{where} is empty.", "Send at least one text.", param=where)
    if len(texts) > most:
        raise RequestError(f"{where} has {len(texts):,} texts.", f"Send at most {most:,} at a time.", param=where)
    for i, text in enumerate(texts):
        if isinstance(text, list) and text and isinstance(text[0], str):
            texts[i] = text = tuple(text)
        if not (text.strip() if isinstance(text, str) else text):
            name = where if isinstance(given, str) or texts[0] is given else f"{where}[{i}]"
            raise RequestError(f"{name} is empty.", "Send some text.", param=name)
    return tuple(texts)


def _images(given: list[str] | None, model: ServedModel, most: int) -> tuple[bytes, ...]:
    if not given:
        return ()
    if not model.takes_images:
        raise RequestError(
            f"images were sent, and '{model.name}' reads text alone.", "Choose another model.", param="images"
        )
    if len(given) > most:
        raise RequestError(f"images has {len(given):,}.", f"Send at most {most:,} at a time.", param="images")
    return tuple(decode_image(uri, f"images[{i}]") for i, uri in enumerate(given))


def _read(
    task: Literal["embed", "classify", "tag"], texts: tuple[Text, ...], images: tuple[bytes, ...], where: str,
    model: ServedModel, caller: Caller, *, truncates: bool, prompt: str | None = None,
) -> ReadRequest:  # fmt: skip
    if bool(texts) == bool(images):
        what = "Both" if texts else "None"
        raise RequestError(f"{what} of {where} and images were sent.", "Send one of them.", param=where)
    return ReadRequest(
        model=model.name, task=task, texts=texts, images=images, caller=caller, truncates=truncates, prompt=prompt
    )


class EmbeddingsRequest(_Reads, kw_only=True):
    """POST /v1/embeddings."""

    input: Inputs | None = None
    images: list[str] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    prompt_name: Annotated[str, Meta(max_length=64)] | None = None
    input_type: Annotated[str, Meta(max_length=64)] | None = None

    def to_read(self, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
        """The texts or images to embed."""
        if self.dimensions is not None and model.width and self.dimensions > model.width:
            raise RequestError(
                f"dimensions is {self.dimensions}, and '{model.name}' has {model.width}.", "Ask for fewer.",
                param="dimensions",
            )  # fmt: skip
        texts = _texts(self.input, "input", most)
        images = _images(self.images, model, most)
        prompt = self.prompt_name or self.input_type
        return _read(
            "embed", texts, images, "input", model, caller, truncates=self._truncates, prompt=prompt
        )  # fmt: skip


class ClassifyRequest(_Reads, kw_only=True):
    """POST /v1/classify."""

    input: Pairs | None = None
    images: list[str] | None = None

    def to_read(self, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
        """The texts, pairs or images to label."""
        texts = _texts(self.input, "input", most)
        images = _images(self.images, model, most)
        return _read("classify", texts, images, "input", model, caller, truncates=self._truncates)


class TagRequest(_Reads, kw_only=True):
    """POST /v1/tag."""

    input: str | list[str]

    def to_read(self, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
        """The texts to tag."""
        texts = _texts(cast("Inputs", self.input), "input", most)
        return _read("tag", texts, (), "input", model, caller, truncates=self._truncates)


class PredictFields(_Reads, kw_only=True):
    """POST /predict with an object."""

    text: Pairs | None = None
    texts: Pairs | None = None
    text_pair: str | None = None
    images: list[str] | None = None


PredictRequest = str | list[str | Annotated[list[str], Meta(min_length=2, max_length=2)]] | PredictFields
"""A text, texts, or an object with either."""


def parse_predict(body: bytes) -> PredictRequest:
    """What /predict was sent."""
    return parse(cast("type[PredictRequest]", PredictRequest), body)


def to_predict_fields(asked: PredictRequest) -> tuple[PredictFields, bool]:
    """The object that was meant, and whether one text was sent rather than a list."""
    if isinstance(asked, str):
        return PredictFields(text=asked), True
    if isinstance(asked, list):
        return PredictFields(texts=asked), False
    return asked, isinstance(asked.text, str) and asked.texts is None


def to_predict(fields: PredictFields, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
    """The texts or images to label."""
    if fields.text is not None and fields.texts is not None:
        raise RequestError("text and texts are both given.", "Send one of them.", param="text")
    name = "texts" if fields.text is None else "text"
    given: Any = fields.texts if fields.text is None else fields.text
    if fields.text_pair is not None:
        if not isinstance(given, str):
            raise RequestError(
                "text_pair needs one text beside it.", 'Send pairs as {"texts": [["a", "b"], …]}.', param="text_pair"
            )
        given = [[given, fields.text_pair]]
    texts = _texts(given, name, most)
    images = _images(fields.images, model, most)
    return _read("classify", texts, images, "text", model, caller, truncates=True)


class RerankDocument(Struct):
    """A document as an object."""

    text: str


class RerankRequest(_Reads, kw_only=True):
    """POST /v1/rerank."""

    query: str
    documents: Annotated[list[str | RerankDocument], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [it if isinstance(it, str) else it.text for it in self.documents]

    def to_read(self, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
        """Each document with the query."""
        if not self.query.strip():
            raise RequestError("query is empty.", "Send some text.", param="query")
        documents = _texts(cast("Inputs", self.texts), "documents", most)
        pairs = tuple((self.query, cast("str", document)) for document in documents)
        return ReadRequest(model=model.name, task="score", texts=pairs, caller=caller, truncates=self._truncates)


class ScoreRequest(_Reads, kw_only=True):
    """POST /v1/score: one text with one or several, or two lists side by side."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None

    def to_read(self, model: ServedModel, caller: Caller, most: int) -> ReadRequest:
        """The pairs."""
        left, right = self._side("text_1", "queries", most), self._side("text_2", "documents", most)
        if len(left) == 1:
            left *= len(right)
        if len(left) != len(right):
            raise RequestError(
                f"text_1 has {len(left)} texts and text_2 {len(right)}.", "Send one, or as many as in the other.",
                param="text_1",
            )  # fmt: skip
        pairs = tuple(zip(left, right, strict=True))
        return ReadRequest(
            model=model.name, task="score", texts=cast("Any", pairs), caller=caller, truncates=self._truncates
        )

    def _side(self, name: str, other: str, most: int) -> tuple[Text, ...]:
        given = getattr(self, name)
        if given is None:
            given, name = getattr(self, other), (other if getattr(self, other) is not None else name)
        if given is None:
            raise RequestError(f"{name} is missing.", "Every request of this kind needs it.", param=name)
        return _texts(given, name, most)
