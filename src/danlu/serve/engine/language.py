"""An engine as a ``LanguageModel``: generate, stream and score, for callers in the same program.

Works over any ``ServingEngine``; the first model that it serves is asked. Knows no tensors.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from danlu.core.errors import DanluError, OverloadedError, RequestError
from danlu.core.records import (
    Completion,
    Delta,
    GenerateOptions,
    OnAdvance,
    Prompt,
    Score,
    TokenLogprob,
)
from danlu.serve.engine.request import (
    Event,
    OnEvent,
    Reply,
    Request,
    ServedModel,
    Ticket,
    TokenizeRequest,
    WriteRequest,
)

_AT_ONCE = 192
"""Requests of one ``generate`` that are in the engine at the same time."""


@dataclass(slots=True)
class _Whole:
    """One answer, put together from its pieces."""

    text: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def take(self, delta: Delta) -> Completion | None:
        """The completion, once the last piece is here."""
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.finish_reason is None or delta.usage is None:
            return None
        return Completion(
            text="".join(self.text),
            finish_reason=delta.finish_reason,
            usage=delta.usage,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
        )


class AskedAsLanguageModel:
    """Inherit it beside ``models`` and ``submit``."""

    def models(self) -> Sequence[ServedModel]:
        """See ``ServingEngine.models``."""
        raise NotImplementedError

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """See ``ServingEngine.submit``."""
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        """Answers in the order of ``prompts``, ``options.n`` of each; as many at once as fit, however many there are.

        Raises OverloadedError only when others fill the queue while none of these is in it.
        """
        options = options or GenerateOptions()
        model = self.models()[0].name
        found: list[dict[int, Completion]] = [{} for _ in prompts]
        wholes: dict[tuple[int, int], _Whole] = {}
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        tickets: dict[int, Ticket] = {}
        pending = deque(range(len(prompts)))
        room = _AT_ONCE
        try:
            while pending or tickets:
                while pending and len(tickets) < room:
                    index = pending.popleft()
                    request = WriteRequest(model=model, prompt=_plain(prompts[index]), options=options)
                    tickets[index] = self.submit(request, _forward(events, index))
                index, event = events.get()
                if isinstance(event, OverloadedError) and len(tickets) > 1:
                    del tickets[index]
                    pending.appendleft(index)
                    room = len(tickets)  # until one of ours ends
                    continue
                if isinstance(event, DanluError):
                    raise event
                assert isinstance(event, Delta)
                completion = wholes.setdefault((index, event.index), _Whole()).take(event)
                if completion is None:
                    continue
                found[index][event.index] = completion
                if len(found[index]) == options.n:
                    del tickets[index]
                    room += 1
                    if on_advance is not None:
                        on_advance(1)
        finally:
            for ticket in tickets.values():
                ticket.cancel()
        return [answers[sample] for answers in found for sample in sorted(answers)]

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; leaving the loop early cancels it."""
        options = options or GenerateOptions()
        if options.num_beams > 1 or options.n > 1:
            name = "num_beams" if options.num_beams > 1 else "n"
            raise RequestError(
                f"{name} is {getattr(options, name)}, but a stream has one answer, told as it is written.",
                "Use generate.", param=name,
            )  # fmt: skip
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        request = WriteRequest(model=self.models()[0].name, prompt=_plain(prompt), options=options)
        ticket = self.submit(request, _forward(events, 0))
        try:
            while True:
                event = events.get()[1]
                if isinstance(event, DanluError):
                    raise event
                assert isinstance(event, Delta)
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
        return [self._score(prompt, text) for prompt, text in zip(prompts, continuations, strict=True)]

    def _score(self, prompt: Prompt, continuation: str) -> Score:
        before = self._ids(prompt, add_special_tokens=True)
        answer = self._ids(continuation, add_special_tokens=False)
        if not before or not answer:
            raise RequestError("Prompt and continuation must both have at least one token.", "Send some text.")
        options = GenerateOptions(max_tokens=1)
        request = WriteRequest(
            model=self.models()[0].name, prompt=[*before, *answer], options=options, prompt_logprobs=1
        )  # fmt: skip
        first = self._only(request)
        assert isinstance(first, Delta)
        found = [one for one in first.prompt_logprobs[len(before) :] if one is not None]
        values = tuple(one.logprob for one in found)
        is_greedy = all(one.top[0][0] == one.token_id for one in found)
        return Score(logprob=sum(values), num_tokens=len(values), is_greedy=is_greedy, token_logprobs=values)

    def _ids(self, prompt: Prompt, *, add_special_tokens: bool) -> list[int]:
        request = TokenizeRequest(
            model=self.models()[0].name,
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            add_special_tokens=add_special_tokens,
        )
        reply = self._only(request)
        assert isinstance(reply, Reply)
        return reply.value["ids"]

    def _only(self, request: Request) -> Event:
        """The first event of a request."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        ticket = self.submit(request, _forward(events, 0))
        event = events.get()[1]
        ticket.cancel()
        if isinstance(event, DanluError):
            raise event
        return event


def _plain(prompt: Prompt) -> Prompt | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _forward(events: queue.SimpleQueue[tuple[int, Event]], index: int) -> OnEvent:
    return lambda event: events.put((index, event))
