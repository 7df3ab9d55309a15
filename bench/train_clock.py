"""The outer clock of a training job: a stamp a step, memory and CPU-seconds of the process, one result file.

Every job of bench/train.py, ours and the peers', runs in a process of its own and imports this file. It knows the
standard library only, because the peers' environment has no danlu and ours has no litgpt.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any


class Job:
    """What a job was asked to do, and what it found out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.stamps_s: list[float] = []
        """End of each optimiser step, seconds since the process was launched."""
        self.cpu_s: list[float] = []
        """CPU-seconds of the process then."""
        self.rss_bytes: list[int] = []
        """Memory of the process then."""
        self.tokens: list[int] = []
        """Tokens of each step that are not padding."""
        self.supervised: list[int] = []
        """Tokens of each step with a label."""
        self.snapshots: list[dict[str, Any]] = []
        """Weights kept on the way: seconds of training and folder."""
        self.begun: dict[str, float] = {}
        self.kept_bytes = 0
        """Most memory that a forward pass left behind for the backward pass, where a job measures it."""
        self.steps_peak = 0
        """Most memory of the process while it trained, loading and saving left out."""
        self._paused_s = 0.0

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A setting that may be absent."""
        return self.settings.get(name, default)

    @property
    def out(self) -> Path:
        """The job's own folder."""
        return Path(self.settings["out"])

    def begin(self) -> None:
        """Everything is loaded; the first step comes next."""
        self.begun = {"at_s": self.now(), "rss_bytes": memory("VmRSS"), "peak_rss_bytes": memory("VmHWM")}
        forget_peak()

    def now(self) -> float:
        """Seconds since the launch, snapshots left out."""
        return time.monotonic() - self.settings["launched"] - self._paused_s

    def step(self) -> None:
        """An optimiser step has ended."""
        self.stamps_s.append(round(self.now(), 4))
        self.cpu_s.append(round(time.process_time(), 4))
        self.rss_bytes.append(memory("VmRSS"))
        self.steps_peak = max(self.steps_peak, memory("VmHWM"))

    def wants_snapshot(self) -> bool:
        """Whether the step that has just ended is one whose weights are kept (setting ``snapshots``: step numbers)."""
        return len(self.stamps_s) in self.get("snapshots", ())

    def snapshot(self, save: Any) -> None:
        """Call ``save(folder)`` outside the clock."""
        started = time.monotonic()
        folder = self.out / f"step-{len(self.stamps_s)}"
        save(folder)
        self.snapshots.append({"step": len(self.stamps_s), "seconds": self.stamps_s[-1], "folder": str(folder)})
        self._paused_s += time.monotonic() - started

    def finish(self, **more: Any) -> None:
        """Write the result: ``losses``, ``saved`` (folder with the weights) and ``resolved`` settings are usual."""
        result = {
            "stamps_s": self.stamps_s,
            "cpu_s": self.cpu_s,
            "rss_bytes": self.rss_bytes,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "snapshots": self.snapshots,
            "begun": self.begun,
            "kept_bytes": self.kept_bytes,
            "steps_peak_rss_bytes": self.steps_peak,
            "peak_rss_bytes": max(self.steps_peak, memory("VmHWM"), int(self.begun.get("peak_rss_bytes", 0))),
            **more,
        }
        (self.out / "result.json").write_text(json.dumps(result, default=str), encoding="utf-8")
        print(json.dumps({"steps": len(self.stamps_s), "losses": result.get("losses", [])[-3:]}), flush=True)


def read_job() -> Job:
    """The job whose settings file is the first argument."""
    job = Job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    job.out.mkdir(parents=True, exist_ok=True)
    return job


def row_order(job: Job) -> list[int]:
    """Rows of the token file in the order of training: the given one, or shuffled again by ``order_seed``."""
    order: list[int] = json.loads(Path(job["corpus"]).read_text(encoding="utf-8"))[job["order"]]
    if job.get("order_seed") is not None:
        random.Random(job["order_seed"]).shuffle(order)
    return order


def forget_peak() -> None:
    """Let VmHWM start again from what is used now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (most so far) of this process in bytes; 0 where /proc is missing."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def bytes_in_use() -> int:
    """What the process has allocated and not freed, by glibc's own account."""
    info = ctypes.CDLL(None).mallinfo2
    info.restype = _Account
    account = info()
    return account.uordblks + account.hblkhd


class _Account(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]
