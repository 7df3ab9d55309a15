"""A server that plays a script, and what it may say."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
CHAT = {"choices": [{"message": {"content": "Hi", "role": "assistant"}, "finish_reason": "length"}], "usage": USAGE}
TEXT = {"choices": [{"text": "there", "finish_reason": "stop"}], "usage": USAGE}


class Script(ThreadingHTTPServer):
    """Answers with the next of ``replies``: (status, headers, body) or bytes written as they are before hanging up."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Player)
        self.replies, self.requests, self.lock = [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Player(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), json.loads(body) if body else None))
            reply = self.server.replies.pop(0)
        if isinstance(reply, bytes):
            self.wfile.write(reply)
            self.close_connection = True
            return
        status, headers, content = reply
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_):
        """Say nothing."""


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def stream_of(*blocks):
    """A chunked response whose blocks arrive as cut here; it ends without the last chunk when None is last."""
    is_whole = blocks[-1] is not None
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks if block)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + chunks + (b"0\r\n\r\n" if is_whole else b"")
