"""Starts the processes of a test: the same module several times, told by environment who they are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    output: str
    errors: str


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    size: int,
    *arguments: str,
    address: str = "127.0.0.1",
    timeout_s: float = 30.0,
    prefixes: Sequence[Sequence[str]] | None = None,
) -> list[Ended]:
    """Run ``tests.train.rank_work ARGUMENTS`` in ``size`` processes. ``prefixes`` go before each one's command;
    ``timeout_s`` is how long they wait for each other."""
    port = str(free_port())
    processes: list[subprocess.Popen[str]] = []
    for rank in range(size):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        environment |= {"OMP_NUM_THREADS": "1", "TEST_TIMEOUT_S": str(timeout_s)}
        command = [*(prefixes[rank] if prefixes else ()), sys.executable, "-W", "error", "-m", "tests.train.rank_work"]
        processes.append(
            subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        told_back = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *texts) for process, texts in zip(processes, told_back, strict=True)]
