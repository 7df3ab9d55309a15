"""The servers of bench/serve.py: how each is started, waited for, loaded and stopped; two threads for everybody.

All of them stand at once while a case is measured, and only one is asked at a time. Knows no case.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_peers import FOLDER, INFINITY, LLAMA_SERVER, PYTHON, ROOT

DANLU = os.environ.get("DANLU_COMMAND", str(Path(sys.executable).with_name("danlu")))
"""The command that serves; another one to try an older version."""
CLIENT = str(Path(sys.executable).with_name("danlu"))
THREADS = 2
CPUS = ("taskset", "-c", "0,1")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "DANLU_API_KEY"},
    "OMP_NUM_THREADS": str(THREADS),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
KEPT = re.compile(
    r"^(duration|completed|failed|failures|failure_messages|valid_json|total_\w+_tokens|\w*throughput|request_goodput|output_lens"
    r"|(median|p95|p99)_(ttft|tpot|itl|e2el)_ms)$"
)
"""What is kept of a report of the load client."""


@dataclass
class Server:
    """One server: a command with ``PORT`` in it, and the name of its model."""

    name: str
    command: Sequence[str]
    model: str = "model"
    prefix: str = ""
    """Of the routes, before /v1."""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What the load client said, one entry a round."""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def start(self) -> None:
        """Returns when it has written one token (or one vector); tells the seconds from the launch to that."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [part.replace("PORT", str(self.port)) for part in self.command]
        log = FOLDER / "logs" / f"{self.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with open(log, "wb") as handle:
            self.process = subprocess.Popen(
                [*CPUS, *command], stdout=handle, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - started > 300:
                self.stop()
                raise SystemExit(f"{self.name} did not start: {' '.join(command)}\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.facts.setdefault("startup_s", []).append(round(time.perf_counter() - started, 3))

    def _answers(self) -> bool:
        questions = {"completions": {"prompt": "The", "max_tokens": 1}, "embeddings": {"input": "The"}}
        return any(
            self.post(f"/v1/{route}", {"model": self.model, **body}) == 200 for route, body in questions.items()
        )  # fmt: skip

    def post(self, path: str, body: dict[str, Any]) -> int:
        """The status of one request; 0 when nobody listens."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def ask(self, *arguments: object, models: str | None = None) -> dict[str, Any]:
        """What ``danlu bench serve`` measures here."""
        with tempfile.NamedTemporaryFile(suffix=".json") as found:
            command = [CLIENT, "bench", "serve", self.url, "--save", found.name, *map(str, arguments)]
            if "--models" not in command:
                command += ["--models", models or self.model]
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            run = json.loads(Path(found.name).read_text(encoding="utf-8"))["runs"][0]
        return {name: round(v, 3) if isinstance(v, float) else v for name, v in run.items() if KEPT.match(name)}

    def measure(self, *arguments: object) -> None:
        """The same, kept as one of its runs."""
        self.runs.append(self.ask(*arguments))
        run = self.runs[-1]
        failed = f", {run['failed']} FAILED {run['failure_messages']}" if run["failed"] else ""
        print(
            f"  {self.name:<28} {run['output_throughput']:9.1f} tokens/s out, {run['total_token_throughput']:9.1f} in "
            f"all, TTFT p95 {run.get('p95_ttft_ms', 0.0):8.1f} ms{failed}",
            flush=True,
        )

    def stop(self) -> None:
        """End it and what it started; notes the most memory that it took."""
        if self.process is None:
            return
        group = os.getpgid(self.process.pid) if self.process.poll() is None else None
        if group is not None:
            self.facts["peak_rss_bytes"] = _peak_rss(group)
            os.killpg(group, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def summary(self) -> dict[str, Any]:
        """For the result file: every run, and of the main numbers the median and the bounds of the middle half."""
        spread: dict[str, list[float]] = {}
        for name in ("output_throughput", "total_token_throughput", "p95_ttft_ms", "median_tpot_ms"):
            values = [run[name] for run in self.runs if name in run]
            if len(values) > 1:
                low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
                spread[name] = [round(value, 3) for value in (middle, low, high)]
        return {"spread": spread, "runs": self.runs, **self.facts}


@contextmanager
def standing(servers: Sequence[Server]) -> Generator[None]:
    """All of them started, and stopped at the end."""
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        yield


def in_turns(servers: Sequence[Server], rounds: int, *arguments: object) -> None:
    """Every server measured once a round, in turning order; each round draws other prompts, the same for all."""
    with standing(servers):
        for number in range(rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                server.measure(*arguments, "--seed", number)


def ours(folder: Path, name: str = "ours_int8", *arguments: str) -> Server:
    """``danlu serve`` as a user starts it; the folder's weights say the precision."""
    return Server(name, [DANLU, "serve", str(folder), "--port", "PORT", "--model-name", "model", *arguments])


def llama_cpp(file: Path, slots: int, name: str = "llama_cpp_q8_0") -> Server:
    """llama.cpp's own server, compiled for this processor; no more slots than are asked at once."""
    options = {
        "-m": file, "--port": "PORT", "-t": THREADS, "-tb": THREADS, "-np": slots, "-c": 1024 * slots,
        "--cache-ram": 0, "--alias": "model",
    }  # fmt: skip
    return Server(name, [str(LLAMA_SERVER), *(str(word) for pair in options.items() for word in pair)])


def xllamacpp(file: Path, slots: int, name: str = "xllamacpp_q8_0") -> Server:
    """llama.cpp's server as the xllamacpp wheel brings it."""
    return Server(name, theirs("xllamacpp", file, slots, "PORT"))


def transformers(folder: Path) -> Server:
    """``transformers serve`` in bf16, which is its faster number type here, with continuous batching."""
    command = [str(PYTHON.with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1", "--port", "PORT"]
    options = ["--device", "cpu", "--dtype", "bfloat16", "--continuous-batching"]
    return Server("transformers_serve_bf16", [*command, *options], model=str(folder))


def infinity(folder: Path) -> Server:
    """infinity-emb on torch."""
    options = ["v2", "--model-id", str(folder), "--served-model-name", "model", "--port", "PORT", "--engine", "torch"]
    options += ["--url-prefix", "/v1", "--no-bettertransformer", "--device", "cpu", "--no-model-warmup"]
    return Server("infinity_emb", [str(INFINITY), *options])


def theirs(*arguments: object) -> list[str]:
    """The command of one job of bench/serve_theirs.py in the peers' environment."""
    return [str(PYTHON), str(ROOT / "bench" / "serve_theirs.py"), *map(str, arguments)]


def their_result(*arguments: object) -> dict[str, Any]:
    """What that job prints last, as JSON."""
    done = subprocess.run([*CPUS, *theirs(*arguments)], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(theirs(*arguments))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_rss(group: int) -> int:
    """Sum of the peaks of all processes of a group, in bytes."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
                total += 1024 * int(found[1]) if found else 0
        except (ProcessLookupError, FileNotFoundError):  # it ended while we looked
            continue
    return total
