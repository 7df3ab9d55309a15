"""A thousand requests of every kind, most of them broken, late or left alone: afterwards nothing is held."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from scripts.set_up_clients import PINS, folder_of
from tests.mixed_load import mixed_load
from tests.serving import Served, eventually, serving

pytestmark = pytest.mark.timeout(180)
SMALL = (
    "--engine.cache-tokens", "2048", "--engine.max-rows", "8", "--engine.max-waiting", "16",
    "--engine.step-tokens", "64",
)  # fmt: skip


def test_after_a_storm_pages_queue_and_files_are_where_they_were(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    names = [f"{name}={folder}" for name, folder in tiny_models.items()]
    with serving(*names, arguments=SMALL, home=tmp_path) as served:
        ask = {"model": "chat", "prompt": "The navy dress", "max_tokens": 20, "temperature": 0}
        before = served.call("/v1/completions", ask).json["choices"]
        pid = served.engine_pid()
        seen = asyncio.run(mixed_load(served.url, num_requests=1000, workers=32))
        assert seen.total() == 1000
        assert set(seen) <= {"200", "400", "404", "429", "504", "hung up"}, seen
        assert min(seen["200"], seen["hung up"], seen["400"], seen["504"]) > 20
        assert eventually(served.is_idle, 5.0)
        assert served.call("/v1/completions", ask).json["choices"] == before
        assert served.engine_pid() == pid
        assert served.metric("danlu:engine_restarts_total") == 0
        assert eventually(lambda: len(os.listdir(f"/proc/{served.process.pid}/fd")) < 60, 5.0)
        assert not [line for line in served.lines if "Traceback" in line or "ERROR" in line]


def test_the_document_of_the_routes_holds_against_generated_requests(served: Served, tmp_path: Path) -> None:
    command = [
        folder_of(PINS / "a.txt") / "bin" / "st", "run", f"{served.url}/openapi.json", "--max-examples", "12",
        "--phases", "fuzzing", "--exclude-checks", "positive_data_acceptance", "--request-timeout", "30",
        "--seed", "1", "--generation-deterministic",
    ]  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**environment, "COLUMNS": "200"})
    failures = [part for part in done.stdout.split("\n- ST")[1:] if '"code":"timeout"' not in part]
    assert not failures, "\n".join(failures)[-6000:]
    assert "API Operations" in done.stdout, done.stdout + done.stderr
