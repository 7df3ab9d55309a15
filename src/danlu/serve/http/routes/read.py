"""Routes of models that read in one pass: embeddings, rerank, score, classify, tag, predict."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from danlu.serve.http.protocol.read import (
    ClassifyRequest,
    EmbeddingsRequest,
    RerankRequest,
    ScoreRequest,
    TagRequest,
    parse_predict,
    to_predict,
    to_predict_fields,
)
from danlu.serve.http.replies import read as replies
from danlu.serve.http.service import Service, json_response


async def embeddings(service: Service, request: Request) -> Response:
    """POST /v1/embeddings."""
    asked = await service.parse(request, EmbeddingsRequest)
    model, caller = service.find(asked.model, "embed"), service.caller(request, asked)
    reading = await service.read(request, asked.to_read(model, caller, service.config.max_texts), caller, model)
    is_base64 = asked.encoding_format == "base64"
    return json_response(replies.embeddings(model.name, reading, asked.dimensions, is_base64=is_base64))


async def rerank(service: Service, request: Request) -> Response:
    """POST /v1/rerank: documents by how well they answer a query."""
    asked = await service.parse(request, RerankRequest)
    model, caller = service.find(asked.model, "score", "embed"), service.caller(request, asked)
    reading = await service.read(request, asked.to_read(model, caller, service.config.max_texts), caller, model)
    documents = None if asked.return_documents is False else asked.texts
    return json_response(replies.ranking(model.name, reading, documents, asked.top_n))


async def score(service: Service, request: Request) -> Response:
    """POST /v1/score: how well texts go with each other."""
    asked = await service.parse(request, ScoreRequest)
    model, caller = service.find(asked.model, "score", "embed"), service.caller(request, asked)
    reading = await service.read(request, asked.to_read(model, caller, service.config.max_texts), caller, model)
    return json_response(replies.scores(model.name, reading))


async def classify(service: Service, request: Request) -> Response:
    """POST /v1/classify: the probability of every label."""
    asked = await service.parse(request, ClassifyRequest)
    model, caller = service.find(asked.model, "classify"), service.caller(request, asked)
    reading = await service.read(request, asked.to_read(model, caller, service.config.max_texts), caller, model)
    return json_response(replies.labels(model.name, reading, model.labels))


async def tag(service: Service, request: Request) -> Response:
    """POST /v1/tag: the spans of each text."""
    asked = await service.parse(request, TagRequest)
    model, caller = service.find(asked.model, "tag"), service.caller(request, asked)
    wanted = asked.to_read(model, caller, service.config.max_texts)
    return json_response(replies.spans(model.name, await service.read(request, wanted, caller, model)))


async def predict(service: Service, request: Request) -> Response:
    """POST /predict: probabilities by label, of a text or of several."""
    asked, is_single = to_predict_fields(parse_predict(await service.body(request)))
    model, caller = service.find(asked.model, "classify"), service.caller(request, asked)
    wanted = to_predict(asked, model, caller, service.config.max_texts)
    reading = await service.read(request, wanted, caller, model)
    return json_response(replies.predictions(model.name, reading, is_single=is_single))
