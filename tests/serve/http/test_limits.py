"""Heads of requests that are too large or too slow."""

import json
import socket
import time

import pytest

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}


@pytest.mark.parametrize("in_pieces", [False, True])
def test_headers_over_the_limit_are_431(start, in_pieces):
    running = start(max_header_bytes=4096)
    with socket.create_connection(running.address, timeout=5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        for _ in range(8 if in_pieces else 1):
            if in_pieces:
                time.sleep(0.01)
            sock.sendall(b"x" * (600 if in_pieces else 5000))
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"headers are larger than 4,096 bytes" in answer


def test_a_body_longer_than_the_header_limit_is_no_header(start):
    running = start(max_header_bytes=1024)
    body = json.dumps({**CHAT, "user": "u" * 50_000}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for cut in (len(head) + 9000, len(head) - 1, 30):
        with socket.create_connection(running.address, timeout=5) as sock:
            for _ in range(2):  # the second request of a connection is measured afresh
                sock.sendall((head + body)[:cut])
                time.sleep(0.03)
                sock.sendall((head + body)[cut:])
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_gets_the_error_object(running):
    with socket.create_connection(running.address, timeout=5) as sock:
        sock.sendall(b"\x16\x03\x01 a TLS client, perhaps\r\n\r\n")
        head, _, body = sock.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["message"] == "This is no HTTP request. Send HTTP/1.1 in the clear."


def test_a_client_that_sends_no_request_is_cut_off(start):
    running = start(read_timeout_s=0.2)
    with socket.create_connection(running.address, timeout=5) as sock:
        sock.sendall(b"GET /health HT")
        assert sock.recv(100) == b""
