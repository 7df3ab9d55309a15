"""Starts several processes of one command on this machine, as torchrun does, and starts them again when one fails.

The first process has the terminal. What the others write goes into files, and the one that failed first is quoted. For
several machines use torchrun itself (docs/distributed.md). Knows no training.
"""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from danlu.core.errors import ConfigError, TrainError
from danlu.train.world import LOST

_GRACE_S = 60
"""A process that is asked to end may finish its step and save for so long."""


def launch(nproc: int, command: Sequence[str], *, logs: Path, max_restarts: int = 0) -> None:
    """Run ``command`` in ``nproc`` processes that find each other (``World.from_environment``) until all are done.

    When one fails all are stopped, and all are started again at most ``max_restarts`` times: they go on from their
    last checkpoint. ``logs`` gets what all but the first process write. Threads are shared out unless OMP_NUM_THREADS
    is set. Raises TrainError when processes fail for good, and KeyboardInterrupt after Ctrl-C, which all of them get.
    """
    if nproc < 1:
        raise ConfigError(f"nproc is {nproc}.", "Use 1 or more, such as the number of GPUs.")
    threads = max(1, len(os.sched_getaffinity(0)) // nproc) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or those started again find the addresses of the dead
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are told below, once
    specs = DefaultLogsSpecs(log_dir=str(logs), redirects=dict.fromkeys(range(1, nproc), Std.ALL))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        logs_specs=specs,
        run_id=uuid.uuid4().hex[:8],
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=max_restarts,
        shutdown_timeout=_GRACE_S,
    )
    program, *arguments = command
    try:
        elastic_launch(config, program)(*arguments)
    except ChildFailedError as error:
        raise _explained(error, nproc, max_restarts) from error
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise TrainError(f"All {nproc} processes were stopped by {error.sigval.name}.") from error


def _explained(error: ChildFailedError, nproc: int, max_restarts: int) -> TrainError:
    """Which process failed first, how, and what it said."""
    failures = sorted(error.failures.values(), key=lambda failure: (LOST in _last_words(failure), failure.timestamp))
    first = failures[0]
    how = f"status {first.exitcode}" if first.exitcode >= 0 else f"signal {signal.Signals(-first.exitcode).name}"
    words = _last_words(first) or ("it says why above" if first.local_rank == 0 else "it wrote nothing")
    again = f" after {max_restarts} restarts" if max_restarts else ""
    hint = "The same command goes on from the last checkpoint."
    if first.exitcode == -signal.SIGKILL:
        hint = f"Processes are killed so when memory runs out. {hint}"
    return TrainError(f"Process {first.local_rank} of {nproc} ended with {how}{again}: {words}.", hint)


def _last_words(failure: ProcessFailure) -> str:
    """The last line that a process wrote to its file of errors."""
    path = Path(failure.error_file).with_name("stderr.log")
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".")[:300] if lines else ""
