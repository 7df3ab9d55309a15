"""danlu: own a large model end to end. ``danlu.run`` runs a recipe, ``danlu.load`` loads what it made.

Importing this loads neither torch nor anything else heavy; the two functions import what they need when called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danlu.core.events import Display
    from danlu.core.records import LanguageModel
    from danlu.flow.run import RunResult

__all__ = ["home", "load", "run"]


def home() -> Path:
    """The store's folder: DANLU_HOME, or ``.danlu`` here."""
    return Path(os.environ.get("DANLU_HOME") or ".danlu")


def run(
    recipe: str | Path,
    *overrides: str,
    serve: bool = False,
    store: str | Path | None = None,
    display: Display | None = None,
) -> RunResult:
    """Run a recipe file, for example ``danlu.run("recipes/product_copy.yaml", "train.steps=50")``.

    What is already done is not done again. With ``serve`` it keeps serving the model at the end.
    """
    from danlu.flow.run import run as run_recipe
    from danlu.lineage.store import Store

    return run_recipe(recipe, *overrides, serve=serve, store=Store(Path(store or home())), display=display)


def load(model: str | Path, store: str | Path | None = None) -> LanguageModel:
    """A model with ``generate``, ``stream`` and ``score``: from a folder or file, an alias, a stage name of the latest
    run, or an artifact id."""
    from danlu.models.generate import ReferenceModel
    from danlu.models.load import load_model

    return ReferenceModel(load_model(locate(model, store)), str(model))


def locate(model: str | Path, store: str | Path | None = None) -> Path:
    """Where a model lies: an existing path is taken as it is, anything else is looked up in the store.

    A fetched artifact that holds one .gguf file is that file.
    """
    from danlu.lineage.runs import resolve
    from danlu.lineage.store import Store

    if Path(model).exists():
        return Path(model)
    folder = resolve(Store(Path(store or home())), str(model)).path
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else folder
