"""One model in memory and its lanes: answers that are written, texts that are read in one pass.

Loading happens in any thread; everything that computes belongs to the engine's. Knows no other models and no queue of
its own.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from danlu.core.errors import ModelError, RequestError
from danlu.core.memory import trim_memory
from danlu.models.fastest import own_reader
from danlu.models.generate import check_writes, prompt_ids
from danlu.models.images import ImageProcessor
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.vision import reads_images
from danlu.serve.engine.abilities import served_model
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.needs import free_bytes, size_of
from danlu.serve.engine.prepare import NO_ADAPTER, Adapter, Prepared, Preparer
from danlu.serve.engine.reader import PreparedRead, ReadLane
from danlu.serve.engine.request import (
    DetokenizeRequest,
    ModelStatus,
    ReadRequest,
    Reply,
    ServedModel,
    TokenizeRequest,
    WriteRequest,
)
from danlu.serve.engine.spec import ModelSpec
from danlu.serve.engine.spelling import Spelling
from danlu.serve.engine.ticket import EngineTicket
from danlu.serve.engine.write_lane import ALL_THREADS, WriteLane, make_write_lane
from danlu.serve.engine.writer import Writer

_LOG = logging.getLogger(__name__)


class Resident:
    """A model that is being served."""

    def __init__(
        self,
        model: Model,
        name: str,
        config: EngineConfig,
        processor: ImageProcessor | None = None,
        *,
        promised_bytes: int = 0,
        owns_model: bool = False,
    ) -> None:
        """``processor`` prepares images, for models that take them; ``promised_bytes`` are memory that others may still
        take; with ``owns_model`` the network is changed for speed: nobody else uses it."""
        self.model = model
        self.name = name
        self.served: ServedModel = served_model(model, name, created=int(time.time()))
        if not self.served.abilities:
            check_writes(model)
            raise ModelError(f"'{name}' can do nothing: it has no head.", "Serve a model with a head.")
        self.last_used = time.monotonic()
        self.failures = 0
        """Steps in a row that failed."""
        self.num_adapters = 0
        """Adapters beside it; a model stays in memory while it has some."""
        self.lane: WriteLane | None = None
        self.writer: Writer | None = None
        self.preparer: Preparer | None = None
        if "write" in self.served.abilities:
            room = free_bytes() - promised_bytes
            self.lane = make_write_lane(model, config, room, owns_model=owns_model)
            self.writer, self.preparer = self.lane.writer, self.lane.preparer
            room = self.preparer.max_tokens
            if room < self.served.context_length:
                _LOG.info("'%s' has a context of %d tokens: as many as its cache holds", name, room)
            self.served = replace(self.served, context_length=min(self.served.context_length, room))
        reads_natively = self.lane is None and owns_model and own_reader(model)
        self.reader = ReadLane(model, name, config, processor) if self.served.abilities - {"write"} else None
        is_native = reads_natively or (self.lane is not None and self.lane.is_native)
        self._torch_threads = 1 if is_native else config.threads or ALL_THREADS

    @functools.cached_property
    def size_bytes(self) -> int:
        """Memory that it takes, about."""
        return size_of(self.model)

    @property
    def promised_bytes(self) -> int:
        """Memory that its cache may still take."""
        return 0 if self.lane is None else self.lane.promised_bytes

    def close(self) -> None:
        """End its threads; it cannot be used after that."""
        if self.lane is not None:
            self.lane.close()

    # in any thread

    def prepare(
        self, request: WriteRequest | ReadRequest, ticket: EngineTicket, adapter: Adapter = NO_ADAPTER
    ) -> Prepared | PreparedRead:
        """Raises RequestError for what this model cannot do or read."""
        if isinstance(request, WriteRequest):
            if self.preparer is None:
                raise self._cannot("write", "writes no text")
            return self.preparer.prepare(request, ticket, adapter)
        if adapter is not NO_ADAPTER:
            raise RequestError(
                f"'{adapter.name}' is an adapter, which only writes.", f"Ask '{self.name}'.", code="unsupported_task",
                param="model",
            )  # fmt: skip
        if self.reader is None or request.task not in self.served.abilities:
            raise self._cannot(request.task, f"cannot {request.task}")
        return self.reader.prepare(request)

    def _cannot(self, task: str, words: str) -> RequestError:
        can = ", ".join(sorted(self.served.abilities)) or "nothing"
        return RequestError(f"'{self.name}' {words}.", f"It can: {can}.", code="unsupported_task", param="model")

    def tokenize(self, request: TokenizeRequest) -> Reply:
        """Ids of a prompt and the text of each."""
        chat = self.model.chat
        tokenizer = chat.tokenizer
        if isinstance(request.prompt, str) and request.prompt in tokenizer.special_ids:
            ids = [tokenizer.special_ids[request.prompt]]
        elif not isinstance(request.prompt, str):
            ids = chat.prompt_ids(request.prompt, tools=request.tools)
        elif not request.add_special_tokens:
            ids = tokenizer.encode_rest(request.prompt)
        elif self.writer is not None:
            ids = prompt_ids(self.model, request.prompt)
        else:
            ids = tokenizer.encode_with_specials(request.prompt)[0]
        texts = [self._spelling.bytes_of(token).decode(errors="replace") for token in ids]
        return Reply(value={"ids": ids, "texts": texts, "context_length": self.served.context_length})

    @functools.cached_property
    def _spelling(self) -> Spelling:
        """Of what is read; spelling out a vocabulary takes a moment, so it is done once."""
        return Spelling(self.model.chat.tokenizer)

    def detokenize(self, request: DetokenizeRequest) -> Reply:
        """Text of ids."""
        size = self.model.config.vocabulary_size
        wrong = next((token for token in request.ids if not 0 <= token < size), None)
        if wrong is not None:
            raise RequestError(f"Token id {wrong} is not of this model.", f"Ids are 0 to {size - 1}.", param="tokens")
        return Reply(value={"text": self.model.chat.tokenizer.decode(request.ids)})

    def describe_tokenizer(self) -> Reply:
        """What the tokenizer is."""
        tokenizer = self.model.chat.tokenizer
        return Reply(
            value={
                "kind": type(tokenizer.backend.model).__name__,
                "vocabulary_size": tokenizer.vocabulary_size,
                "end_ids": sorted(tokenizer.end_ids),
                "special_tokens": dict(tokenizer.special_ids),
                **{name: tokenizer.roles.get(name) for name in ("bos_token", "eos_token", "pad_token")},
                "chat_template": self.model.chat.source,
                "context_length": self.served.context_length,
            }
        )

    # in the engine's thread

    @property
    def has_work(self) -> bool:
        """Whether anything is queued or running."""
        return (self.writer is not None and self.writer.has_work) or (self.reader is not None and self.reader.has_work)

    def ready_at(self, now: float) -> float | None:
        """When a step would do something: now, soon, or never."""
        if self.writer is not None and self.writer.has_work:
            return now
        return None if self.reader is None else self.reader.ready_at(now)

    def add(self, prepared: Prepared | PreparedRead, ticket: EngineTicket, now: float) -> None:
        """Queue what was made ready."""
        self.last_used = now
        if isinstance(prepared, Prepared):
            assert self.writer is not None
            self.writer.add(prepared, now)
        else:
            assert self.reader is not None
            self.reader.add(prepared, ticket, now)

    def step(self, now: float) -> bool:
        """One step of each lane that has something to do; whether one had."""
        if (
            torch.get_num_threads() != self._torch_threads
        ):  # torch's threads and those of the kernels get in each other's way
            torch.set_num_threads(self._torch_threads)
        at = None if self.reader is None else self.reader.ready_at(now)
        writes, reads = self.writer is not None and self.writer.has_work, at is not None and at <= now
        if writes:
            assert self.writer is not None
            self.writer.step(now)
        if reads:
            assert self.reader is not None
            self.reader.step(now)
        if writes or reads:
            self.last_used = now
        return writes or reads

    def cancel(self, ticket: EngineTicket) -> None:
        """Drop a request if it is here."""
        if self.writer is not None:
            self.writer.cancel(ticket)
        if self.reader is not None:
            self.reader.cancel(ticket)

    def fail(self, error: RequestError) -> None:
        """End what runs."""
        if self.writer is not None:
            self.writer.fail(error)
        if self.reader is not None:
            self.reader.fail(error)

    def end_all(self, error: RequestError | None) -> None:
        """End everything: with an error, or as if it had been cancelled."""
        if self.writer is not None:
            for ticket in self.writer.tickets:
                if error is None:
                    self.writer.cancel(ticket)
            if error is not None:
                self.writer.fail_all(error)
        if self.reader is not None:
            self.reader.fail_all(error or RequestError("The server is stopping.", "Try elsewhere.", status=503))

    def status(self) -> ModelStatus:
        """How it is doing; from any thread."""
        if self.writer is not None:
            return self.writer.status()
        assert self.reader is not None
        return self.reader.status()


def load_resident(spec: ModelSpec | Model, name: str, config: EngineConfig, promised_bytes: int = 0) -> Resident:
    """Read a model's files and make it ready to be served; ``promised_bytes`` are memory that others may still take."""
    if isinstance(spec, Model):
        return Resident(spec, name, config, promised_bytes=promised_bytes)
    path = Path(spec.path)
    scheme = None if spec.scheme == "none" else spec.scheme
    torch.set_num_threads(1)  # many small operations: on a busy machine two threads take twenty times as long
    try:
        model = load_model(path, precision=spec.precision, scheme=scheme)
    finally:
        torch.set_num_threads(config.threads or ALL_THREADS)
    processor = ImageProcessor.of_folder(path) if path.is_dir() and reads_images(model) else None
    resident = Resident(model, name, config, processor, promised_bytes=promised_bytes, owns_model=True)
    trim_memory()
    return resident
