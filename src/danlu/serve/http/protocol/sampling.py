"""The fields that say how to continue a prompt, shared by chats, completions and responses.

Knows nothing of prompts, messages or how answers are written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.serve.engine.request import Grammar
from danlu.serve.http.protocol.parse import Int64, TokenId

MAX_GRAMMAR_BYTES = 64 << 10
_MAX_CHOICES = 1_000
Schema = dict[str, Any] | str
"""A JSON schema, or its text."""


class JsonSchema(Struct):
    """A named schema of ``response_format``; ``strict`` is always meant."""

    schema: Schema | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """What the answer must look like, in OpenAI's form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self, where: str) -> Grammar | None:
        """The same as a grammar; ``where`` names it in errors."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_object")
        if self.json_schema is None or self.json_schema.schema is None:
            param = f"{where}.json_schema"
            raise RequestError(
                f"{param}.schema is missing.",
                'Send {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}.',
                param=param,
            )
        return Grammar(kind="json_schema", text=schema_text(self.json_schema.schema, f"{where}.json_schema.schema"))


def schema_text(schema: Schema, where: str) -> str:
    """The schema as JSON text; ``where`` names it in errors."""
    text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    if not text.lstrip().startswith("{"):
        raise RequestError(f"{where} is {text[:40]!r}.", "Send a JSON schema: an object.", param=where)
    return text


class StreamOptions(Struct):
    """How to stream."""

    include_usage: bool | None = None


class StructuredOutputs(Struct):
    """What the answer must look like: one of these (vLLM's extension)."""

    json: Schema | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=_MAX_CHOICES)] | None = None
    grammar: str | None = None


class Asked(Struct, kw_only=True):
    """Fields that every request to a model may have."""

    model: str | None = None
    user: str | None = None
    priority: Annotated[int, Meta(ge=-1_000, le=1_000)] | None = None
    timeout: Annotated[float, Meta(ge=0.001)] | None = None


class Sampling(Asked, kw_only=True):
    """Fields that chats and completions share."""

    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: Int64 | None = None
    logit_bias: Annotated[dict[int, float], Meta(max_length=1024)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    n: Int64 | None = None
    num_beams: Int64 | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=_MAX_CHOICES)] | None = None
    guided_grammar: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, most: int, context_length: int, logprobs: int | None, n: int) -> GenerateOptions:
        """The sampling options, with OpenAI's defaults where the request is silent: temperature 1, or 0 with beams."""
        num_beams = 1 if self.num_beams is None else self.num_beams
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if num_beams > 1 else 1.0
        return GenerateOptions(
            max_tokens=min(most, context_length),
            min_tokens=self.min_tokens or 0,
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=0 if self.top_k in (None, -1) else self.top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            logit_bias=self.logit_bias or {},
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            seed=self.seed,
            n=n,
            logprobs=logprobs,
            num_beams=num_beams,
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            early_stopping=False if self.early_stopping is None else self.early_stopping,
        )

    def grammar(self, response_format: ResponseFormat | None = None) -> Grammar | None:
        """What the answer must look like; RequestError when two fields say it."""
        found: dict[str, Grammar] = {}
        wanted = self.structured_outputs or StructuredOutputs()
        guided = StructuredOutputs(
            json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice, grammar=self.guided_grammar
        )
        for prefix, given in (
            ("structured_outputs.", wanted),
            ("guided_", guided),
        ):
            if given.json is not None:
                found[f"{prefix}json"] = Grammar(kind="json_schema", text=schema_text(given.json, f"{prefix}json"))
            if given.json_object:
                found[f"{prefix}json_object"] = Grammar(kind="json_object")
            if given.regex is not None:
                found[f"{prefix}regex"] = Grammar(kind="regex", text=given.regex)
            if given.choice is not None:
                found[f"{prefix}choice"] = Grammar(kind="choice", text=msgspec.json.encode(given.choice).decode())
            if given.grammar is not None:
                found[f"{prefix}grammar"] = Grammar(kind="lark", text=given.grammar)
        if response_format is not None:
            shaped = response_format.grammar("response_format")
            if shaped is not None:
                found["response_format"] = shaped
        if len(found) > 1:
            first, second, *_ = found
            raise RequestError(f"{first} and {second} are both given.", "Give one of them.", param=first)
        for name, grammar in found.items():
            if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
                raise RequestError(
                    f"{name} is larger than {MAX_GRAMMAR_BYTES:,} bytes.", "Send a smaller one.", param=name
                )
        return next(iter(found.values()), None)
