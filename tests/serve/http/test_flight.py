"""What becomes of a request whose client is slow, gone or impatient."""

import json
import random
import socket
import time

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}


def ask_and_not_read(running, body):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(running.address)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def test_a_stream_that_nobody_reads_is_cancelled(start):
    running = start(max_pending_bytes=100_000)
    running.engine.pieces, running.engine.delay_s = ("x" * 200_000,) * 60, 0.001
    with ask_and_not_read(running, {**CHAT, "stream": True, "max_tokens": 60}):
        while not running.engine.tickets:
            time.sleep(0.005)
        assert running.engine.tickets[0].cancelled.wait(5)


def test_a_client_that_takes_nothing_for_too_long_is_cut_off(start):
    running = start(write_timeout_s=0.2)
    running.engine.pieces = ("x" * 4_000_000,)
    with ask_and_not_read(running, CHAT) as sock:
        time.sleep(0.6)
        received = 0
        try:
            while chunk := sock.recv(1 << 16):
                received += len(chunk)
        except ConnectionResetError:
            pass
    assert received < 4_000_000


def test_clients_that_hang_up_at_any_time_leave_nothing_behind(running, eventually):
    running.engine.pieces, running.engine.delay_s = ("Hello",) * 10_000, 0.05
    chance = random.Random(5)
    socks = []
    for number in range(40):
        kind = {"stream": number % 2 == 0, "n": chance.choice([1, 3]), "max_tokens": 9999}
        socks.append(ask_and_not_read(running, {**CHAT, **kind}))
        if chance.random() < 0.5:
            time.sleep(chance.random() / 100)
            socks.pop(chance.randrange(len(socks))).close()
    for sock in socks:
        sock.close()
    assert eventually(lambda: all(ticket.cancelled.is_set() for ticket in running.engine.tickets))
    assert running.call("/health")[0] == 200


def test_a_request_may_ask_for_a_shorter_deadline_but_not_a_longer_one(start):
    running = start(request_timeout_s=5.0)
    running.engine.gate.clear()
    status, error = running.error_of("/v1/chat/completions", {**CHAT, "timeout": 0.1})
    assert (status, error["code"]) == (504, "timeout")
    assert "within 0.1 s" in error["message"]
    running.engine.gate.set()
    running.call("/v1/chat/completions", {**CHAT, "timeout": 100})
    assert running.engine.seen[-1].caller.timeout_s == 5.0


def test_an_answer_that_fails_takes_the_others_along(running):
    running.engine.gate.clear()
    status, error = running.error_of("/v1/completions", {"prompt": ["fine", "also", " "]})
    assert (status, error["param"]) == (400, "prompt")
    assert [ticket.cancelled.wait(2) for ticket in running.engine.tickets[:2]] == [True, True]
