"""danlu: own a large model end to end. ``danlu.run`` runs a recipe, ``danlu.load`` loads what it made, ``danlu.engine``
answers many callers at once with it.

Importing this loads neither torch nor anything else heavy; the functions import what they need when called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from danlu.core.events import Display
    from danlu.flow.run import RunResult
    from danlu.loaded import Loaded
    from danlu.models.model import Precision
    from danlu.models.vision import ImageModel
    from danlu.serve.engine.config import EngineConfig
    from danlu.serve.engine.engine import Engine

__all__ = ["engine", "home", "load", "run"]


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


def load(
    model: str | Path,
    store: str | Path | None = None,
    *,
    tokenizer: Literal["its own"] | None = "its own",
    precision: Precision | None = None,
    int8: bool = False,
) -> Loaded | ImageModel:
    """A model that can do whatever its head allows (``generate``, ``embed``, ``classify``, ``logits``, …): from a
    folder or .gguf file, an alias, a stage of the latest run, an artifact id, or a hub id "owner/name" (``locate``).

    With ``tokenizer=None`` none is looked for: the model reads and writes token ids. ``precision`` is the number type;
    None picks bf16 where the machine is fast at it, else fp32. ``int8`` quantises while loading. Models of images
    (ViT, ResNet, CLIP, …) come as an ImageModel. The weights are packed for inference: train with ``load_model``.
    """
    from danlu.loaded import Loaded
    from danlu.models.load import load_model
    from danlu.models.vision import ImageModel, reads_images

    path = locate(model, store)
    found = load_model(
        path, precision=precision, scheme="int8" if int8 else None, is_packed=True, with_tokenizer=tokenizer is not None
    )
    return ImageModel.of(found, path) if reads_images(found) else Loaded(found, str(model))


def engine(
    models: str | Path | Mapping[str, str | Path],
    store: str | Path | None = None,
    *,
    precision: Precision | None = None,
    int8: bool = False,
    config: EngineConfig | None = None,
) -> Engine:
    """An engine in this process: it answers many callers at once, in batches. ``models`` is one as for ``load``, or
    several by the names that requests are to call them by; those that memory has no room for are loaded when asked for.

    Use it in a ``with`` block, or ``stop`` it. ``danlu.load(…).engine()`` is one over a model that is loaded already.
    """
    from danlu.loaded import short_name
    from danlu.serve.engine.engine import Engine
    from danlu.serve.engine.spec import ModelSpec

    named = models if isinstance(models, Mapping) else {short_name(models): models}
    scheme = "int8" if int8 else "none"
    specs = {
        name: ModelSpec(name=name, path=str(locate(model, store)), precision=precision, scheme=scheme)
        for name, model in named.items()
    }
    return Engine(specs, config)


def locate(model: str | Path, store: str | Path | None = None) -> Path:
    """Where a model lies. An existing path is taken as it is; else a name of the store (an alias, a stage of the latest
    run, an artifact id); else "owner/name" or "owner/name@revision" on the Hugging Face hub, fetched into its cache.

    A fetched artifact that holds one .gguf file is that file.
    """
    from danlu.core.errors import StoreError
    from danlu.lineage.runs import resolve
    from danlu.lineage.store import Store
    from danlu.models.hub import fetch_model, is_hub_id

    if Path(model).exists():
        return Path(model)
    if str(model).startswith(("/", "./", "../", "~")) or str(model).endswith(".gguf"):
        raise StoreError(f"There is no file or folder {model}.", "Check the path.")
    try:
        folder = resolve(Store(Path(store or home())), str(model)).path
    except StoreError:
        if not is_hub_id(str(model)):
            raise
        folder = fetch_model(str(model))
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else folder
