"""The half of the engine's process between the socket and the engine."""

import queue
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from danlu.core.errors import RequestError
from danlu.core.records import Delta, GenerateOptions
from danlu.serve.engine.host import Host
from danlu.serve.engine.outbox import Outbox
from danlu.serve.engine.request import Reply, WriteRequest
from danlu.serve.engine.wire import FrameReader, WireError, frames, is_event, pack, pack_request, unpack_event
from tests.serve.engine.fake_engine import FakeEngine, FakeTicket


class Peer:
    """The other side of a Host that runs in a thread of this process."""

    def __init__(self, engine, **outbox):
        self.sock, theirs = socket.socketpair()
        self.reader = FrameReader(self.sock)
        self.engine, self.outbox = engine, Outbox(theirs, **outbox)
        self.end = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self.thread.start()

    def _run(self, theirs):
        with theirs:
            try:
                Host(self.engine, self.outbox).run(FrameReader(theirs))
            except (EOFError, WireError) as error:
                self.end.put(error)
            self.outbox.close()

    def send(self, *items):
        for frame in frames(items, 1 << 20):
            self.sock.sendall(frame)

    def items(self, timeout_s=5.0):
        """Everything that is not a status, one by one."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            yield from (item for item in self.reader.read(0.1) or () if item[0] != "status")
        raise AssertionError("nothing more was said")

    def event(self, request_id, timeout_s=5.0):
        return next(
            unpack_event(operation, payload)
            for operation, found, payload in self.items(timeout_s)
            if found == request_id and is_event(operation)
        )


@pytest.fixture
def peer() -> Iterator[Peer]:
    found = Peer(FakeEngine())
    yield found
    found.sock.close()
    found.thread.join(5)


def write(prompt: str) -> WriteRequest:
    return WriteRequest(model="fake", prompt=prompt, options=GenerateOptions())


def test_it_begins_with_the_models_and_then_says_that_it_is_ready(peer: Peer) -> None:
    said = peer.items()
    assert [next(said)[0], next(said)[0]] == ["models", "ready"]


def test_a_request_and_its_cancel_in_one_frame_are_both_heard(peer: Peer) -> None:
    peer.send(pack_request(1, write("wait")), pack("cancel", 1, None), pack("cancel", 99, None))
    event = peer.event(1)
    assert isinstance(event, RequestError) or event.finish_reason == "abort"  # pyright: ignore
    if isinstance(event, RequestError):
        assert (str(event), event.status) == ("The request was cancelled.", 499)


def test_a_request_that_cannot_be_read_is_its_own_error(peer: Peer) -> None:
    peer.send(pack("WriteRequest", 1, {"model": 3}))
    event = peer.event(1)
    assert isinstance(event, RequestError)
    assert (event.message, event.status) == ("The engine failed.", 500)
    peer.send(pack_request(2, write("go a")))
    assert isinstance(peer.event(2), Delta)


def test_what_nobody_knows_ends_it(peer: Peer) -> None:
    peer.send(pack("format", 0, None))
    error = peer.end.get(timeout=5)
    assert isinstance(error, WireError)
    assert "'format' is not known" in str(error)


def test_a_peer_that_is_gone_ends_it(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_RDWR)
    assert isinstance(peer.end.get(timeout=5), EOFError)


def test_stopping_is_told_when_it_is_done(peer: Peer) -> None:
    peer.send(pack("stop", 0, 0.0))
    assert "stopped" in (item[0] for item in peer.items())


class Flood(FakeEngine):
    """Writes without end until it is cancelled."""

    def submit(self, request, on_event):
        ticket = FakeTicket()
        threading.Thread(target=self._flood, args=(ticket, on_event), daemon=True).start()
        self.ticket = ticket
        return ticket

    def _flood(self, ticket, on_event):
        while not ticket.cancelled.is_set():
            on_event(Delta(text="x" * 1000))
        on_event(Delta(text="", finish_reason="abort"))


def test_a_reader_that_is_too_slow_loses_the_request_not_the_memory() -> None:
    engine = Flood()
    peer = Peer(engine, max_unsent_bytes=100_000)
    peer.send(pack_request(1, write("go")))
    while not hasattr(engine, "ticket"):
        time.sleep(0.005)
    assert engine.ticket.cancelled.wait(10), "nobody reads, so it was cancelled"
    events = []
    for operation, request_id, payload in peer.items():
        if request_id == 1:
            events.append(unpack_event(operation, payload))
            if isinstance(events[-1], RequestError):
                break
    assert "The server reads its engine's answers too slowly. Try again soon." in str(events[-1])
    assert events[-1].status == 503
    assert sum(len(event.text) for event in events[:-1]) < 2_000_000
    peer.sock.close()


def test_an_answer_that_no_frame_holds_is_an_error() -> None:
    class Large(FakeEngine):
        def submit(self, request, on_event):
            on_event(Reply(value={"x": "x" * 3000}))
            return FakeTicket()

    peer = Peer(Large(), max_frame_bytes=2000)
    peer.send(pack_request(1, write("go")))
    event = peer.event(1)
    assert isinstance(event, RequestError)
    assert event.status == 413
    assert "bytes, more than can be sent at once. Ask for fewer texts at a time." in str(event)
    peer.sock.close()
