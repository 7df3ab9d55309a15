"""Measure a server under load, with the metric names of ``vllm bench serve``.

URL is any OpenAI-compatible server. Several values of --concurrency or --rate are run one after the other, on different
prompts. Ctrl-C prints what was measured so far. Without --api-key the variable DANLU_API_KEY is sent.

Examples:
  danlu bench serve http://127.0.0.1:8000 --concurrency 1 8 32 --ignore-eos
  danlu bench serve --rate 4 --goodput ttft:500 tpot:50 --num-requests 200
  danlu bench serve --endpoint chat --turns 4 --prefix-tokens 512 --save results.json
  danlu bench serve --endpoint embeddings --input-tokens 128 --spread 0.9 --concurrency 8
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from danlu.cli.display import make_display, result_console
from danlu.client.load import Level, LoadConfig, OnOutcome, run_load
from danlu.client.load_report import Outcome, Report
from danlu.core.events import Display, Events
from danlu.core.files import atomic_write, disk_errors


def command(
    what: tyro.conf.Positional[Literal["serve"]],
    url: tyro.conf.Positional[str] = "http://127.0.0.1:8000",
    *,
    api_key: str | None = None,
    save: Path | None = None,
    details: tyro.conf.FlagCreatePairsOff[bool] = False,
    load: tyro.conf.OmitArgPrefixes[LoadConfig] = LoadConfig(),  # noqa: B008 - frozen
) -> int:
    """Measure a server under load.

    Args:
        what: What is measured: a server.
        url: Its address, with or without /v1.
        api_key: Sent as a bearer token.
        save: Write the results there as JSON.
        details: Write every request's lengths, latencies and text there too.
        load: What is sent, and how.
    """
    assert what == "serve"
    display, api_key = make_display(), api_key or os.environ.get("DANLU_API_KEY")
    if save is not None:
        with disk_errors(save):  # before the measuring, not after it
            save.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as bars:
        on_level = _Progress(display, load, bars).begin
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            reports = runner.run(run_load(url, load, api_key=api_key, on_level=on_level))
    result_console().print(to_table(reports))
    for message in sorted({f"{kind}: {text}" for _, report in reports for kind, text in report.messages.items()}):
        display.say(f"✗ failed with {message}")
    if save is not None:
        with atomic_write(save) as handle:
            json.dump(
                to_result(url, load, reports, with_requests=details), handle, indent=2, ensure_ascii=False, default=str
            )
        display.say(f"Written: {save}")
    return 130 if any(report.is_interrupted for _, report in reports) else 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's halves what the client takes from a server on the same machine; it is not made for Windows."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


class _Progress:
    """One bar a level."""

    def __init__(self, display: Display, load: LoadConfig, bars: ExitStack) -> None:
        self._events, self._total, self._bars = Events(display=display), load.num_requests, bars

    def begin(self, level: Level) -> OnOutcome:
        self._bars.close()  # the one before
        bar = self._bars.enter_context(self._events.bar(str(level), total=self._total, unit="requests"))
        tokens = failed = 0
        started = time.perf_counter()

        def on_outcome(outcome: Outcome) -> None:
            nonlocal tokens, failed
            tokens += outcome.output_tokens
            failed += bool(outcome.failure)
            metrics = {"output_tokens_per_s": tokens / (time.perf_counter() - started)} if tokens else {}
            bar.advance(1, **metrics, **({"failed": float(failed)} if failed else {}))

        return on_outcome


def to_table(reports: Sequence[tuple[Level, Report]]) -> Table:
    """Metrics down, levels across; a level without a metric (no answer, no stream) has a gap there."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("")
    for level, report in reports:
        found.add_column(f"{level}{' (stopped)' if report.is_interrupted else ''}", justify="right")
    columns = [{(section, name): value for section, name, value in report.rows()} for _, report in reports]
    section = ""
    for key in dict.fromkeys(key for column in columns for key in column):
        if key[0] != section:
            section = key[0]
            found.add_row(f"[bold]{section}[/bold]")
        found.add_row(key[1], *(column.get(key, "") for column in columns))
    return found


def to_result(
    url: str, load: LoadConfig, reports: Sequence[tuple[Level, Report]], *, with_requests: bool
) -> dict[str, object]:  # fmt: skip
    """What --save writes."""
    return {
        "tool": f"danlu bench serve {version('danlu')}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "url": url,
        "config": asdict(load),
        "runs": [
            {"request_rate": level.rate, "max_concurrency": level.concurrency}
            | report.to_json(with_requests=with_requests)
            for level, report in reports
        ],
    }
