"""One request of a load test: its body, its answer read as it comes, what became of it.

Knows OpenAI's routes and nothing of when requests are sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from danlu.client.load_prompts import Job
from danlu.client.load_report import Outcome
from danlu.client.load_wire import Pool
from danlu.core.errors import ConfigError
from danlu.core.records import Message

Endpoint = Literal["completions", "chat", "embeddings"]
_PATHS: dict[Endpoint, str] = {
    "completions": "/v1/completions", "chat": "/v1/chat/completions", "embeddings": "/v1/embeddings",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How requests are put."""

    endpoint: Endpoint = "completions"
    """Route that is asked."""
    ignore_eos: bool = False
    """Ask for answers that do not end before their length (an extension that most servers know)."""
    temperature: float = 0.0
    """0 for the likeliest token."""
    json_schema: Path | None = None
    """File with the JSON schema that answers must follow; they are then also checked to be JSON."""
    extra_body: str = ""
    """Further fields of every body, as a JSON object."""
    timeout_s: float = 600.0
    """A request that takes longer has failed."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}.", "Use more than 0.")
        self.more_fields()

    def more_fields(self) -> dict[str, Any]:
        """Fields of every body beside the prompt's own; raises ConfigError for what is no JSON."""
        found: dict[str, Any] = {}
        if self.endpoint != "embeddings":
            found |= {"temperature": self.temperature, "stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            found["ignore_eos"] = True
        if self.json_schema is not None:
            try:
                schema = {"name": "answer", "schema": _object(self.json_schema.read_bytes()), "strict": True}
            except (OSError, ValueError) as error:
                raise ConfigError(f"json_schema {self.json_schema}: {error}.", "Give a file with a schema.") from error
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            return found | _object(self.extra_body or "{}")
        except ValueError as error:
            raise ConfigError(
                f"extra_body is {self.extra_body!r} ({error}).", 'Write for example {"top_k": 1}.'
            ) from error


def _object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; raises ValueError for anything else."""
    return msgspec.json.decode(text, type=dict[str, Any])


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Part(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Part | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Counts | None = None
    error: _Failure | str | None = None


class _Failure(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Failure | str = ""


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class Stream:
    """Server-sent events as they arrive: when each piece of text came, what it was, and how the answer ended."""

    def __init__(self) -> None:
        self.stamps_s: list[float] = []
        self.texts: list[str] = []
        self.usage: _Counts | None = None
        self.error = ""
        self.is_finished = False
        self._rest = b""

    def feed(self, now_s: float, data: bytes) -> None:
        """A piece of the stream, cut anywhere; a burst of several events has one time."""
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(now_s, line[5:])

    def _event(self, now_s: float, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.error = self.error or f"an event is not JSON: {error}"
            return
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.error:
            self.error = chunk.error if isinstance(chunk.error, str) else chunk.error.message
        for choice in chunk.choices:
            part = choice.delta
            text = choice.text if part is None else (part.content or part.reasoning_content)
            if text or (part is not None and part.tool_calls):
                self.stamps_s.append(now_s)
                self.texts.append(text or "")
            self.is_finished = self.is_finished or choice.finish_reason is not None


async def ask_job(
    pool: Pool, config: AskConfig, job: Job, model: str, fields: Mapping[str, Any] | None = None
) -> list[Outcome]:  # fmt: skip
    """The job's requests one after the other; a conversation ends with the first that fails. ``fields`` are the
    config's, made once for many jobs."""
    fields = config.more_fields() if fields is None else fields
    if config.endpoint == "embeddings":
        texts = [job.prompt, *job.more_texts] if job.more_texts else job.prompt
        return [await _ask(pool, config, {"model": model, "input": texts, **fields}, None)]
    messages = _messages(job) if config.endpoint == "chat" else []
    outcomes: list[Outcome] = []
    for question in (None, *job.follow_ups):
        if question is not None:
            said: Message = {"role": "assistant", "content": outcomes[-1].text}
            messages += [said, {"role": "user", "content": question}]
        asked = {"messages": messages} if config.endpoint == "chat" else {"prompt": job.prompt}
        outcomes.append(
            await _write(pool, config, {"model": model, **asked, "max_tokens": job.output_tokens, **fields})
        )
        if outcomes[-1].failure:
            break
    return outcomes


def _messages(job: Job) -> list[Message]:
    return [{"role": "user", "content": job.prompt}] if isinstance(job.prompt, str) else list(job.prompt)


async def _write(pool: Pool, config: AskConfig, body: dict[str, Any]) -> Outcome:
    stream = Stream()
    outcome = await _ask(pool, config, body, stream)
    outcome.stamps_s = stream.stamps_s
    outcome.text = "".join(stream.texts)
    if stream.usage is not None:
        _count(outcome, stream.usage)
    outcome.output_tokens = outcome.output_tokens or len(stream.stamps_s)  # a server that does not count
    if not outcome.failure and (stream.error or not stream.is_finished):
        outcome.failure, outcome.message = "broken", stream.error or "the answer ended without a finish_reason"
    if config.json_schema is not None and not outcome.failure:
        outcome.is_valid = _is_json(outcome.text)
    return outcome


async def _ask(pool: Pool, config: AskConfig, body: dict[str, Any], stream: Stream | None) -> Outcome:
    content = msgspec.json.encode(body)
    outcome = Outcome(model=str(body["model"]), sent_s=time.perf_counter())
    try:
        async with asyncio.timeout(config.timeout_s):
            answer = await pool.ask("POST", _PATHS[config.endpoint], content, stream.feed if stream else None)
    except TimeoutError:
        outcome.failure, outcome.message = "timeout", f"no whole answer within {config.timeout_s:g} s"
    except OSError as error:
        outcome.failure, outcome.message = "connection", str(error)
    else:
        if answer.status != 200:
            outcome.failure, outcome.message = str(answer.status), refusal(answer.body)
        elif stream is None or answer.body:
            _read_whole(outcome, answer.body, config.endpoint)
    outcome.ended_s = time.perf_counter()
    return outcome


def _read_whole(outcome: Outcome, body: bytes, endpoint: Endpoint) -> None:
    """An answer that did not come as a stream."""
    try:
        usage = _decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        outcome.failure, outcome.message = "broken", f"the answer is not JSON: {error}"
        return
    if endpoint != "embeddings":
        outcome.failure, outcome.message = "broken", "the answer is no stream"
    elif usage is not None:
        _count(outcome, usage)


def _count(outcome: Outcome, usage: _Counts) -> None:
    outcome.input_tokens, outcome.output_tokens = usage.prompt_tokens, usage.completion_tokens
    details = usage.prompt_tokens_details
    outcome.cached_tokens = (details.cached_tokens or 0) if details is not None else 0


def refusal(body: bytes) -> str:
    """What a server said about a request that it did not answer."""
    try:
        error = _decode_refusal(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode("utf-8", "replace")
    return (error if isinstance(error, str) else error.message) or body[:200].decode("utf-8", "replace")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
