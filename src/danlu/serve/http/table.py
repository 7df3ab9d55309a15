"""Every route in one table: what takes it, what it reads and writes. App and OpenAPI document are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from danlu.serve.http.guard import AsgiApp
from danlu.serve.http.protocol import adapters, chat, completions, read, responses, tokens
from danlu.serve.http.replies import chat as chat_replies
from danlu.serve.http.replies import completions as completion_replies
from danlu.serve.http.replies import read as read_replies
from danlu.serve.http.replies import responses as response_replies
from danlu.serve.http.routes import chat as chat_routes
from danlu.serve.http.routes import completions as completion_routes
from danlu.serve.http.routes import models, operations
from danlu.serve.http.routes import read as read_routes
from danlu.serve.http.routes import responses as response_routes
from danlu.serve.http.routes import tokens as token_routes
from danlu.serve.http.service import Service

Handler = Callable[[Service, Request], Awaitable[AsgiApp]]


@dataclass(frozen=True)
class Endpoint:
    """One route."""

    method: str
    path: str
    handler: Handler
    body: Any = None
    """Type of the request's body."""
    reply: Any = None
    """Type of the answer's body, or several; None for text."""
    streams: bool = False
    """Whether the answer may come as server-sent events."""


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/v1/chat/completions", chat_routes.chat, chat.ChatRequest, chat_replies.ChatCompletion, True),
    Endpoint(
        "POST", "/v1/completions", completion_routes.complete,
        completions.CompletionRequest, completion_replies.Completions, True,
    ),
    Endpoint(
        "POST", "/v1/responses", response_routes.respond,
        responses.ResponsesRequest, response_replies.ResponseReply, True,
    ),
    Endpoint("GET", "/v1/responses/{response_id}", response_routes.get, None, response_replies.ResponseReply),
    Endpoint("DELETE", "/v1/responses/{response_id}", response_routes.delete, None, response_replies.Deleted),
    Endpoint(
        "POST", "/v1/responses/{response_id}/cancel", response_routes.cancel, None, response_replies.ResponseReply
    ),
    Endpoint("POST", "/v1/embeddings", read_routes.embeddings, read.EmbeddingsRequest, read_replies.EmbeddingList),
    Endpoint("POST", "/v1/rerank", read_routes.rerank, read.RerankRequest, read_replies.Ranking),
    Endpoint("POST", "/rerank", read_routes.rerank, read.RerankRequest, read_replies.Ranking),
    Endpoint("POST", "/v1/score", read_routes.score, read.ScoreRequest, read_replies.ScoreList),
    Endpoint("POST", "/score", read_routes.score, read.ScoreRequest, read_replies.ScoreList),
    Endpoint("POST", "/v1/classify", read_routes.classify, read.ClassifyRequest, read_replies.LabelList),
    Endpoint("POST", "/classify", read_routes.classify, read.ClassifyRequest, read_replies.LabelList),
    Endpoint("POST", "/v1/tag", read_routes.tag, read.TagRequest, read_replies.SpansList),
    Endpoint(
        "POST", "/predict", read_routes.predict,
        read.PredictRequest, (read_replies.OnePrediction, read_replies.Predictions),
    ),
    Endpoint("GET", "/v1/models", models.models, None, models.ModelList),
    Endpoint("GET", "/v1/models/{model:path}", models.model, None, models.Model),
    Endpoint("POST", "/v1/load_lora_adapter", models.load_adapter, adapters.LoadBody, models.AdapterReply),
    Endpoint("POST", "/v1/unload_lora_adapter", models.unload_adapter, adapters.UnloadBody, models.AdapterReply),
    Endpoint("POST", "/tokenize", token_routes.tokenize, tokens.TokenizeBody, token_routes.TokenizeReply),
    Endpoint("POST", "/detokenize", token_routes.detokenize, tokens.DetokenizeBody, token_routes.DetokenizeReply),
    Endpoint("GET", "/tokenizer_info", token_routes.tokenizer_info, None, token_routes.TokenizerReply),
    Endpoint(
        "POST", "/tokenizer_info", token_routes.tokenizer_info, tokens.TokenizerBody, token_routes.TokenizerReply
    ),
    Endpoint("GET", "/health", operations.health, None, operations.Health),
    Endpoint("GET", "/ready", operations.ready, None, operations.Readiness),
    Endpoint("GET", "/version", operations.version, None, operations.Version),
    Endpoint("GET", "/metrics", operations.metrics),
)  # fmt: skip
