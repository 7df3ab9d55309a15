"""Show an artifact or a run: where it came from, what it holds, what it cost.

ID is an artifact id or the start of one, an alias, a stage of the latest run, a run id, or 'latest' (the latest run).

Examples:
  danlu show product-copy
  danlu show latest
  danlu show 3fa2 --json
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

import danlu
from danlu.cli.display import result_console
from danlu.cli.options import Home
from danlu.core.config import to_mapping
from danlu.core.errors import StoreError
from danlu.flow.words import describe_host, duration
from danlu.lineage.manifest import Manifest
from danlu.lineage.runs import RunRecord, read_run, resolve
from danlu.lineage.store import Artifact, Store

_MOST_FILES = 30


def command(
    id: tyro.conf.Positional[str], *, json: tyro.conf.FlagCreatePairsOff[bool] = False, home: Home = None
) -> int:
    """Show an artifact or a run.

    Args:
        id: Artifact id or its start, alias, stage of the latest run, run id, or 'latest'.
        json: Print the manifest or run record as JSON.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    found = _find(Store(home or danlu.home()), id)
    if json:
        _print_json(found)
    elif isinstance(found, RunRecord):
        _show_run(found, result_console())
    else:
        _show_artifact(found, result_console())
    return 0


def _find(store: Store, text: str) -> Artifact | RunRecord:
    try:
        return resolve(store, text)
    except StoreError as error:
        try:
            return read_run(store, text)
        except StoreError:
            raise error from None


def _print_json(found: Artifact | RunRecord) -> None:
    print(
        json.dumps(to_mapping(found if isinstance(found, RunRecord) else found.manifest), indent=2, ensure_ascii=False)
    )


def _show_run(record: RunRecord, console: Console) -> None:
    console.print(f"[bold]run {record.id}[/]  {record.recipe}  {record.status}  {duration(record.seconds)}")
    console.print(f"command   danlu run {shlex.join((record.path, *record.overrides))}", soft_wrap=True, markup=False)
    console.print(f"peak      {record.peak_rss_bytes / 2**20:,.0f} MiB")
    if record.error:
        console.print(Text(f"error     {record.error}", style="red"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "plugin", "status", "artifact"):
        table.add_column(column)
    table.add_column("time", justify="right")
    for stage in record.stages:
        table.add_row(stage.name, stage.use, stage.status, stage.artifact or "", duration(stage.seconds))
    console.print(table)


def _show_artifact(artifact: Artifact, console: Console) -> None:
    manifest = artifact.manifest
    console.print(f"[bold]{manifest.kind} {manifest.id}[/]  made by stage '{manifest.name}' ({manifest.origin.stage})")
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(artifact):
        facts.add_row(Text(name, style="dim"), Text(value))
    console.print(facts)
    _section(console, "inputs", manifest.origin.inputs)
    _section(console, "config", manifest.origin.config)
    _section(console, "metrics", manifest.metrics)
    files = [(name, f"{entry.size:>14,}  {entry.sha256[:12]}") for name, entry in manifest.files.items()]
    _section(console, "files", dict(files[:_MOST_FILES]))
    if len(files) > _MOST_FILES:
        console.print(f"  and {len(files) - _MOST_FILES} more (--json shows all)")


def _facts(artifact: Artifact) -> list[tuple[str, str]]:
    manifest: Manifest = artifact.manifest
    energy, code = manifest.cost.energy, manifest.code
    commit = f", commit {code.commit[:10]}{' + local changes' if code.dirty else ''}" if code.commit else ""
    grid = f"at {energy.grid_kg_per_kwh} kg/kWh"
    attempts = f", attempt {manifest.cost.attempts}" if manifest.cost.attempts > 1 else ""
    return [
        ("folder", str(artifact.path)),
        ("size", f"{manifest.size_bytes:,} bytes in {len(manifest.files)} files"),
        ("created", f"{manifest.created} in {duration(manifest.cost.seconds)}{attempts}"),
        ("energy", f"{energy.value_wh:.3g} Wh ({energy.method}), {energy.gco2:.3g} g CO2e {grid}"),
        ("code", f"danlu {code.version}{commit}, stage version {manifest.origin.version}"),
        ("seed", "not used" if manifest.origin.seed is None else str(manifest.origin.seed)),
        ("host", describe_host(manifest.host)),
    ]


def _section(console: Console, title: str, values: dict[str, Any]) -> None:
    if not values:
        return
    console.print(f"[bold]{title}[/]")
    grid = Table.grid(padding=(0, 2))
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        grid.add_row(Text(f"  {name}", style="dim"), Text(text))
    console.print(grid)
