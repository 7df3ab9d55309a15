"""Train what a recipe says, in one process or several; prove its training, or plan it.

`danlu train RECIPE` runs the recipe up to its end without serving, like `danlu run --no-serve`; with --nproc its
training stages run in several processes together (one a GPU). On several machines start it with torchrun on each.
`danlu train check RECIPE` proves on your own data and model that a killed run resumes to the same losses and that
micro-batches, packing and processes change no gradient. `danlu train plan RECIPE` tries ten steps of each of a few
settings and says what the run will take.

Examples:
  danlu train recipes/product_copy.yaml train.steps=50
  danlu train recipes/product_copy.yaml --nproc 2
  danlu train check recipes/product_copy.yaml
  danlu train plan recipes/product_copy.yaml
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

import danlu
from danlu.cli.display import make_display, result_console
from danlu.cli.options import Home
from danlu.core.errors import ConfigError
from danlu.core.events import Display

Words = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[check|plan] RECIPE [KEY=VALUE ...]")]


def command(
    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[check|plan] RECIPE [KEY=VALUE ...]")
    ],
    *,
    nproc: int = 1,
    max_restarts: int = 0,
    timeout_s: float = 1800.0,
    stage: str | None = None,
    home: Home = None,
) -> int:
    """Train.

    Args:
        words: The recipe and settings that replace its own; check or plan before it.
        nproc: Processes that train together on this machine.
        max_restarts: How often to start all of them again from the last checkpoint when one dies.
        timeout_s: How long a process waits for the others.
        stage: For check and plan: which training stage, where a recipe has several.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    action, rest = (words[0], words[1:]) if words and words[0] in ("check", "plan") else ("", words)
    if not rest:
        raise ConfigError("No recipe is given.", "For example: danlu train recipes/product_copy.yaml")
    path, overrides = Path(rest[0]), rest[1:]
    store = Path(home or danlu.home())
    if action == "check":
        return _check(path, overrides, store, stage)
    if action == "plan":
        return _plan(path, overrides, store, stage)
    if "RANK" in os.environ:
        return _work(path, overrides, store, timeout_s)
    if nproc == 1:
        _run(path, overrides, store, make_display())
        return 0
    from danlu.train.launch import launch

    own = ["--timeout-s", str(timeout_s), "--home", str(store)]
    arguments = [sys.executable, "-m", "danlu.cli.main", "train", *map(str, rest), *own]
    launch(nproc, arguments, logs=store / "logs", max_restarts=max_restarts)
    return 0


def _run(path: Path, overrides: tuple[str, ...], store: Path, display: Display) -> None:
    result = danlu.run(path, *overrides, serve=False, store=store, display=display)
    made = len(result.artifacts) - len(result.reused)
    display.say(f"Done: {made} made, {len(result.reused)} reused. `danlu show {result.id}` has the details.")


def _work(path: Path, overrides: tuple[str, ...], store: Path, timeout_s: float) -> int:
    """One of several processes."""
    from danlu.flow.recipe import load_recipe
    from danlu.flow.team import TEAM, follow
    from danlu.lineage.store import Store
    from danlu.train.world import World

    with World.from_environment(timeout_s=timeout_s) as world:
        TEAM.set(world)
        if world.is_first:
            _run(path, overrides, store, make_display())
        else:
            follow(load_recipe(path, overrides), Store(store), world)
    return 0


def _check(path: Path, overrides: tuple[str, ...], store: Path, stage: str | None) -> int:
    from danlu.flow.check import check
    from danlu.flow.probe import find_subject
    from danlu.lineage.store import Store

    display = make_display()
    subject = find_subject(path, overrides, Store(store), display, stage)
    display.say(f"Checking '{subject.stage.name}' of {path} on its own model and data; nothing is kept.")
    all_hold = True
    for proof in check(subject):
        all_hold &= proof.holds
        print(f"{'✓' if proof.holds else '✗'} {proof.name}: {proof.found}", flush=True)
    return 0 if all_hold else 1


def _plan(path: Path, overrides: tuple[str, ...], store: Path, stage: str | None) -> int:
    from rich.table import Table

    from danlu.flow.plan import STEPS, cheapest, estimate
    from danlu.flow.probe import find_subject
    from danlu.flow.words import duration
    from danlu.lineage.store import Store

    display = make_display()
    subject = find_subject(path, overrides, Store(store), display, stage)
    display.say(f"Trying {STEPS} steps of '{subject.stage.name}' for each of a few settings.")
    found = []
    for one in estimate(subject):
        display.say(f"  {one.name}: {one.tokens_per_s:,.0f} tokens/s")
        found.append(one)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(("settings", "tokens/s", "time", "peak memory", "energy", "CO2")):
        table.add_column(column, justify="left" if number == 0 else "right")
    for one in found:
        table.add_row(
            one.name,
            f"{one.tokens_per_s:,.0f}",
            duration(one.seconds),
            f"{one.peak_bytes / 1e9:.2f} GB",
            f"{one.wh:.2g} Wh",
            f"{one.gco2:.2g} g",
        )
    result_console().print(table)
    memory = _memory_bytes()
    best = cheapest(found, memory)
    if best is None:
        print(f"None of them fits into the {memory / 1e9:.1f} GB of this machine: use shorter rows or a smaller model.")
        return 1
    settings = " ".join(f"{subject.stage.name}.{key}={value}" for key, value in best.changes.items())
    print(
        f"Cheapest that fits into {memory / 1e9:.1f} GB: {best.name}" + (f" ({settings})" if settings else "") + "."
        f" Energy is {best.energy_method}; time is without loading, validation and checkpoints."
    )
    return 0


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
