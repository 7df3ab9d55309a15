"""What the measuring itself costs (the load client against a server that only sends), and what memory can give.

python bench/serve_client.py PORT CHUNKS         the server that only sends, until it is ended
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import Any

CHUNK = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" word",'
    b'"logprobs":null,"finish_reason":%s}],"usage":%s}\n\n'
)
"""As large as the chunks that servers send."""
NUM_CHUNKS, NUM_REQUESTS, CONCURRENCY = 500, 192, 8


async def send_only(port: int, num_chunks: int) -> None:
    """Answers every completion with that many chunks, 2 ms apart."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            if b"/v1/completions" not in head:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            middle = _framed(CHUNK % (b"null", b"null"))
            for _ in range(num_chunks - 1):
                writer.write(middle)
                await asyncio.sleep(0.002)
            usage = b'{"prompt_tokens":1,"completion_tokens":%d}' % num_chunks
            writer.write(_framed(CHUNK % (b'"length"', usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request, its body read too; empty when there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        await reader.readexactly(int(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    return head


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def cost() -> dict[str, Any]:
    """Processor time of ``danlu bench serve`` for each chunk of an answer, its start not counted."""
    from serve_systems import Server

    server = Server("stub", [sys.executable, __file__, "PORT", str(NUM_CHUNKS)])
    server.start()
    arguments = ("--concurrency", CONCURRENCY, "--num-warmups", 0, "--output-tokens", NUM_CHUNKS)

    def spend(num_requests: int) -> tuple[float, dict[str, Any]]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = server.ask(*arguments, "--num-requests", num_requests)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, run

    try:
        start_s, _ = spend(1)
        seconds, run = spend(NUM_REQUESTS)
    finally:
        server.stop()
    us_per_chunk = 1e6 * (seconds - start_s) / ((NUM_REQUESTS - 1) * NUM_CHUNKS)
    print(f"  the client takes {us_per_chunk:.1f} µs a chunk", flush=True)
    return {"us_per_chunk": round(us_per_chunk, 2), "run": run}


def read_bandwidth(size_bytes: int = 1 << 30, rounds: int = 12) -> float:
    """Most bytes a second that torch's threads read from memory, summing up."""
    import torch

    numbers = torch.ones(size_bytes // 4)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return size_bytes / best


if __name__ == "__main__":
    asyncio.run(send_only(int(sys.argv[1]), int(sys.argv[2])))
