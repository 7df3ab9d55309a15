"""Items on their way to the other process: together, in order, bounded."""

import socket

from danlu.serve.engine.outbox import Outbox
from danlu.serve.engine.wire import FrameReader, pack


def test_what_gathers_during_a_write_goes_out_in_the_next_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours)
        big = pack("big", 0, b"x" * (4 << 20))  # more than the socket takes: the write waits
        outbox.put(big)
        while outbox._items:
            pass
        for number in range(500):
            assert outbox.put(pack("small", number, None))
        reader = FrameReader(theirs)
        first, rest = reader.read(5.0), reader.read(5.0)
        assert [operation for operation, _, _ in first or ()] == ["big"]
        assert [number for _, number, _ in rest or ()] == list(range(500))
        assert outbox.flush(5.0)
        assert outbox.num_writes == 2
        outbox.close()


def test_too_much_is_refused_but_what_is_urgent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours, max_frame_bytes=10 << 20, max_unsent_bytes=1000)
        outbox.put(pack("big", 0, b"x" * (4 << 20)))
        while outbox._items:
            pass
        item = pack("x", 1, b"x" * 300)
        assert [outbox.put(item) for _ in range(5)] == [True, True, True, False, False]
        assert outbox.put(pack("cancel", 1, None), is_urgent=True)
        assert not outbox.put(b"x" * (11 << 20), is_urgent=True), "no frame holds it"
        assert not outbox.flush(0.01)
        outbox.close()
        assert outbox.put(item), "dropped: nobody is there any more"


def test_a_reader_that_is_gone_ends_it_quietly() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        outbox = Outbox(ours)
        outbox.put(pack("x", 0, None))
        outbox._thread.join(5)
        assert not outbox._thread.is_alive()
