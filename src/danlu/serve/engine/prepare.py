"""What a request to write asks for, made ready before it may queue: ids, limits, grammar, pages it will need.

Runs in the thread of whoever submits, so that no long prompt and no large grammar holds up the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, Message
from danlu.models.beam import Search
from danlu.models.generate import check_writes, prompt_ids, start
from danlu.models.model import Model
from danlu.models.writing import Writing
from danlu.serve.engine.answer import Answer, Asked
from danlu.serve.engine.beams import Beams
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.constrain import Constraint, GrammarLimits, GrammarVocabulary, compile_grammar
from danlu.serve.engine.pages import PAGE_TOKENS, cache_salt
from danlu.serve.engine.request import WriteRequest
from danlu.serve.engine.row import UNLIMITED, Row
from danlu.serve.engine.scheduler import Scheduler
from danlu.serve.engine.ticket import EngineTicket
from danlu.text.tool_formats import MARKERS


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that linears can use."""

    name: str
    slot: int
    version: int
    """Goes up with every load, so that nothing computed with an older one is found again."""


NO_ADAPTER = Adapter("", 0, 0)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to queue."""

    asked: Asked
    row: Row


class Preparer:
    """Makes requests to one model ready. Thread-safe."""

    def __init__(self, model: Model, scheduler: Scheduler, config: EngineConfig) -> None:
        check_writes(model)
        self._model = model
        self._scheduler = scheduler
        self._limits = GrammarLimits(max_bytes=config.max_grammar_bytes, timeout_s=config.grammar_timeout_s)

    @property
    def max_tokens(self) -> int:
        """Most tokens that one answer and its prompt may have in the cache."""
        batch = self._scheduler.batch
        return batch.pool.num_pages * PAGE_TOKENS if batch.has_pages else UNLIMITED

    def prepare(self, request: WriteRequest, ticket: EngineTicket, adapter: Adapter = NO_ADAPTER) -> Prepared:
        """Raises RequestError for what the model cannot read or write."""
        options, model = request.options, self._model
        if options.penalty_alpha:
            raise RequestError(
                "penalty_alpha is given, but contrastive search is not served.",
                "Leave it out, or use danlu.load(…).generate.", param="penalty_alpha",
            )  # fmt: skip
        if options.lookup_tokens and model.stack_config.is_recurrent:
            raise RequestError(
                f"lookup_tokens is {options.lookup_tokens}, and this model has recurrent layers, which cannot take "
                "tokens back.", "Leave it out.", param="lookup_tokens",
            )  # fmt: skip
        self._check_ids(options)
        ids = self._ids(request)
        writing = start(
            model, ids, self._within_cache(options, ids), shown=MARKERS if request.tools else ()
        )  # fmt: skip
        self._check_room(writing)
        if request.grammar is not None and options.num_beams > 1:
            raise RequestError(
                f"num_beams is {options.num_beams} and the answer has a grammar.", "Use one of them.",
                param="num_beams",
            )  # fmt: skip
        has_source = writing.source_ids is not None
        if has_source and request.prompt_logprobs is not None:
            raise RequestError(
                f"prompt_logprobs is {request.prompt_logprobs}, but this model reads a source and says nothing of it.",
                "Leave it out.", param="prompt_logprobs",
            )  # fmt: skip
        asked = Asked(request=request, ticket=ticket, num_left=options.n, adapter=adapter.slot)
        if request.prompt_logprobs is not None:
            asked.prompt_logprobs = [None]
        if options.num_beams > 1:
            tokenizer = model.chat.tokenizer.target if model.has_tokenizer else None
            asked.beams = Beams(Search(writing, tokenizer))
        constraint = None
        if request.grammar is not None:
            vocabulary = GrammarVocabulary.of(model.chat.tokenizer.target)
            constraint = Constraint(compile_grammar(request.grammar, vocabulary, self._limits))
        caller = request.caller
        row = Row(
            ids=list(writing.prompt_ids),
            max_tokens=len(writing.prompt_ids) + writing.limit,
            request=Answer(asked=asked, writing=writing, constraint=constraint),
            tenant=caller.tenant,
            priority=caller.priority,
            deadline=ticket.deadline,
            num_answers=max(options.n, options.num_beams),
            salt=None if has_source else cache_salt(caller.tenant, request.cache_salt, adapter.name, adapter.version),
            reads_cache=request.prompt_logprobs is None,
            memory_tokens=len(writing.source_ids or ()),
        )
        return Prepared(asked, row)

    def _ids(self, request: WriteRequest) -> Sequence[int]:
        prompt = request.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return prompt_ids(self._model, cast("str | list[int]", prompt))
        messages = cast("Sequence[Message]", prompt)
        return self._model.chat.prompt_ids(messages, tools=request.tools, options=request.template_options)

    def _check_ids(self, options: GenerateOptions) -> None:
        """Token ids in options must be of this model."""
        size = self._model.config.vocabulary_size
        for name, ids in (("logit_bias", options.logit_bias), ("stop_token_ids", options.stop_token_ids)):
            wrong = next((token for token in ids if not 0 <= token < size), None)
            if wrong is not None:
                raise RequestError(f"{name} has token id {wrong}.", f"Ids are 0 to {size - 1}.", param=name)

    def _within_cache(self, options: GenerateOptions, ids: Sequence[int]) -> GenerateOptions:
        """An answer that would fill the whole cache ends there as it would where the context ends."""
        room = self.max_tokens - (1 if self._model.config.encoder is not None else len(ids))
        if options.num_beams > 1 or not 0 < room < options.max_tokens:
            return options
        return replace(options, max_tokens=room, min_tokens=min(options.min_tokens, room))

    def _check_room(self, writing: Writing) -> None:
        options = writing.options
        answers = max(options.n, options.num_beams)
        sources = len(writing.source_ids or ())
        if answers > self._scheduler.batch.max_rows:
            name = "num_beams" if options.num_beams > 1 else "n"
            raise RequestError(
                f"{name} is {answers}; this server writes {self._scheduler.batch.max_rows} answers at a time.",
                "Lower it.",
                param=name,
            )  # fmt: skip
        needed = len(writing.prompt_ids) + 1
        if options.num_beams > 1:  # beams step together, so all of them must fit to their end
            own = writing.limit + PAGE_TOKENS  # with the page that prompt and answer meet in
            needed += (answers - 1) * (-(-own // PAGE_TOKENS) + 1) * PAGE_TOKENS + writing.limit
        if not self._scheduler.can_ever_fit(needed, answers, sources):
            raise RequestError(
                f"This takes up to {needed + sources} tokens of the key/value cache, more than this server has.",
                "Shorten the prompt, ask for less, or serve with more cache_tokens.",
                code="context_length_exceeded",
            )
