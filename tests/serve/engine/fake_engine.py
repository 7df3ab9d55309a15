"""An engine without a model: what the tests of the other process talk to. Run as a script it is that process.

The model's name, or the first word of a prompt, says how it behaves; an answer is the words of its prompt.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time

from danlu.core.errors import ModelError, OverloadedError, RequestError
from danlu.core.records import Delta, TokenLogprob, Usage
from danlu.serve.engine.process import main
from danlu.serve.engine.request import (
    AdapterRequest,
    EngineStatus,
    ModelStatus,
    Reading,
    ReadRequest,
    Reply,
    ServedModel,
    WriteRequest,
)


class FakeTicket:
    def __init__(self):
        self.cancelled = threading.Event()

    def cancel(self):
        self.cancelled.set()


class FakeEngine:
    """Answers from one thread a request; ``age_s`` is what it says of its last step."""

    def __init__(self, names=("fake",)):
        self.names, self.adapters, self.age_s, self.is_stopping = list(names), {}, 0.0, threading.Event()
        self.drain_until, self.running = float("inf"), set()

    def models(self):
        told = [ServedModel(name=n, abilities=frozenset({"write", "embed"}), context_length=64) for n in self.names]
        return told + [
            ServedModel(name=n, abilities=frozenset({"write"}), context_length=64, base=base)
            for n, base in self.adapters.items()
        ]

    def submit(self, request, on_event):
        ticket = FakeTicket()
        if self.is_stopping.is_set():
            on_event(RequestError("The engine is stopping.", status=503))
        else:
            self.running.add(ticket)
            threading.Thread(target=self._answer, args=(request, ticket, on_event), daemon=True).start()
        return ticket

    def _answer(self, request, ticket, on_event):
        event = self._last(request, ticket, on_event)
        self.running.discard(ticket)
        on_event(event)

    def _last(self, request, ticket, on_event):
        if isinstance(request, ReadRequest):
            vectors = struct.pack(f"<{len(request.texts)}f", *(float(len(text)) for text in request.texts))
            return Reading(usage=Usage(prompt_tokens=1, completion_tokens=0), vectors=vectors, width=1)
        if isinstance(request, AdapterRequest):
            if request.folder == "missing":
                return ModelError("There is no adapter at missing.", "Check the path.")
            if request.action == "load":
                self.adapters[request.name] = self.names[0]
            else:
                del self.adapters[request.name]
            return Reply(value={"name": request.name})
        if not isinstance(request, WriteRequest):
            return Reply(value={"ids": [1, 2], "model": request.model, "bytes": b"\xff", "chat_template": "yes"})
        if request.model not in [*self.names, *self.adapters]:
            return RequestError(f"There is no model {request.model}.", "Ask.", status=404, code="model_not_found")
        return self._write(request, ticket, on_event)

    def _write(self, request, ticket, on_event):
        prompt = request.prompt
        if not isinstance(prompt, str):
            prompt = " ".join(str(part if isinstance(part, int) else part["content"]) for part in prompt)
        word, *words = prompt.split()
        usage = Usage(prompt_tokens=len(words) + 1, completion_tokens=len(words))
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "hang":
            self.age_s = 1e6
        if word == "full":
            return OverloadedError("The queue is full.", "Later.", retry_after_s=7)
        if word == "odd":
            on_event(Reply(value={"not": object()}))
        while word in ("wait", "hang"):
            is_over = self.is_stopping.is_set() and time.monotonic() > self.drain_until
            if ticket.cancelled.wait(0.005) or is_over:
                return Delta(text="", finish_reason="abort", usage=usage)
        if word == "slow":
            time.sleep(0.3)
        for index in range(request.options.n - 1, -1, -1):
            for place, piece in enumerate(words):
                top = (TokenLogprob(token_id=place, logprob=-0.5, top=((place, -0.5), (9, -2.0))),)
                on_event(Delta(text=piece, index=index, token_ids=(place,), logprobs=top, token_bytes={9: b"\xe4"}))
            if index:
                on_event(Delta(text="", finish_reason="stop", index=index, usage=usage))
        return Delta(text="", finish_reason="stop", usage=usage)

    def status(self):
        return EngineStatus(
            is_ready=not self.is_stopping.is_set(), last_step_age_s=self.age_s,
            models={self.names[0]: ModelStatus(running=len(self.running), steps_by_batch_size={1: 2})},
        )  # fmt: skip

    def stop(self, drain_s):
        self.drain_until = min(self.drain_until, time.monotonic() + drain_s)
        self.is_stopping.set()
        while self.running:
            time.sleep(0.005)


def build(spec, say):
    say("Loading " + ", ".join(model.name for model in spec.models))
    path = spec.models[0].path
    if path == "absent":
        raise ModelError("There is no model at absent.", "Check the path.")
    if path == "broken":
        raise KeyError("weight")
    if path == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if path == "slow":
        time.sleep(60)
    return FakeEngine([model.name for model in spec.models])


if __name__ == "__main__":
    main(sys.argv[1:], build)
