"""List runs: when, which recipe, how far it got, how long it took, how much memory.

Examples:
  danlu runs
  danlu runs --last 50
"""

from __future__ import annotations

from datetime import datetime

from rich.table import Table
from rich.text import Text

import danlu
from danlu.cli.display import result_console
from danlu.cli.options import Home
from danlu.flow.words import duration
from danlu.lineage.runs import RunRecord, runs
from danlu.lineage.store import Store

_COLOURS = {"done": "green", "failed": "red", "interrupted": "yellow", "stopped": "yellow", "running": "cyan"}


def command(*, last: int = 20, home: Home = None) -> int:
    """List runs.

    Args:
        last: How many to show, newest last.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    store = Store(home or danlu.home())
    records = runs(store)
    if not records:
        print(f"No runs in {store.root} yet. Start one: danlu run recipes/product_copy.yaml")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "recipe", "started", "status", "stages"):
        table.add_column(column, no_wrap=column == "run")
    table.add_column("time", justify="right")
    table.add_column("memory", justify="right")
    for record in records[-last:]:
        table.add_row(*_row(record))
    result_console().print(table)
    return 0


def _row(record: RunRecord) -> tuple[str | Text, ...]:
    made = sum(stage.status == "done" for stage in record.stages)
    reused = sum(stage.status == "reused" for stage in record.stages)
    started = datetime.fromisoformat(record.started).astimezone()
    colour = _COLOURS[record.status]
    return (
        record.id,
        Text(" ".join((record.recipe, *record.overrides))),
        f"{started:%Y-%m-%d %H:%M}",
        f"[{colour}]{record.status}[/]",
        f"{made} made, {reused} reused of {len(record.stages)}",
        duration(record.seconds),
        f"{record.peak_rss_bytes / 2**20:,.0f} MiB" if record.peak_rss_bytes else "",
    )
