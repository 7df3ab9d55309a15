"""A real `danlu serve` for tests: its HTTP process, its engine's process, and tiny models of random weights."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models.encoders import save_encoder, save_sentence
from tests.tiny import write_tiny

LABELS = ("good", "bad", "so-so")
_START_S = 120.0
_STOP_S = 15.0


def write_models(folder: Path) -> dict[str, Path]:
    """A model of each kind, by the name it is served under."""
    from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

    paths = {name: folder / name for name in ("chat", "sentences", "classes", "tags")}
    write_tiny(paths["chat"], context=1024)
    save_encoder(paths["sentences"], BertModel)
    save_sentence(paths["sentences"])
    save_encoder(paths["classes"], BertForSequenceClassification, id2label=dict(enumerate(LABELS)))
    save_encoder(paths["tags"], BertForTokenClassification, id2label={0: "O", 1: "B-CITY", 2: "I-CITY"})
    return paths


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.content)

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        return re.findall(r"^data: (.*)$", self.content.decode(), re.MULTILINE)

    @property
    def chunks(self) -> list[Any]:
        """The same, decoded; [DONE] left out."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: list[str]) -> None:
        self.process = process
        self.url = url
        self.lines = lines
        """What it wrote so far."""
        self.host, self.port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # pyright: ignore

    def call(
        self, path: str, body: Any = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask once; ``body`` is bytes, or becomes JSON."""
        connection = self.connect()
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Type": "application/json", **(headers or {})}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, content, told)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self, timeout_s: float = 60) -> http.client.HTTPConnection:
        """A connection to ask by hand."""
        return http.client.HTTPConnection(self.host, int(self.port), timeout=timeout_s)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, its labels in the name."""
        samples = [
            line.rpartition(" ") for line in self.call("/metrics").content.decode().splitlines() if line[0] != "#"
        ]
        return {name: float(value) for name, _, value in samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name which have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [v for n, v in self.metrics().items() if n.partition("{")[0] == name and all(w in n for w in wanted)]
        assert found, f"no metric {name} {labels}"
        return sum(found)

    def is_idle(self) -> bool:
        """Whether nothing runs or waits and no page is held."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.metric(f"danlu:{name}") == 0 for name in names)

    def engine_pid(self) -> int | None:
        """The engine's process; None while there is none."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"danlu.serve.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None


@contextmanager
def serving(*models: str, arguments: Sequence[str] = (), home: Path) -> Iterator[Served]:
    """`danlu serve` on a free port, until the block ends."""
    command = [sys.executable, "-m", "danlu.cli.main", "serve", *models, "--port", "0", "--precision", "fp32"]
    command += ["--threads", "1", "--home", str(home), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    lines: list[str] = []
    urls: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Serving .* at (http://\S+)", line):
                urls.put(found.group(1))
        urls.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        url = urls.get(timeout=_START_S)
        assert url is not None, "".join(lines)
        yield Served(process, url, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
