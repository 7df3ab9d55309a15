"""Serve a model over HTTP with the OpenAI API, until Ctrl-C.

MODEL is a model folder or GGUF file, an alias, a stage of the latest run, an artifact id, or a hub id (owner/name).

Examples:
  danlu serve product-copy
  danlu serve ./my-model --port 9000 --model-name mine
  danlu serve product-copy --host 0.0.0.0 --api-key SECRET

A recipe's serve stage can set more: `danlu schema --stage serve`.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import danlu
from danlu.cli.display import make_display
from danlu.cli.options import Home
from danlu.core.events import Events
from danlu.serve.http.config import HttpConfig


def command(
    model: tyro.conf.Positional[str],
    *,
    model_name: str | None = None,
    http: tyro.conf.OmitArgPrefixes[HttpConfig] = HttpConfig(),  # noqa: B008 - frozen
    home: Home = None,
) -> int:
    """Serve a model.

    Args:
        model: Model folder or GGUF file, alias, stage of the latest run, artifact id, or hub id.
        model_name: What clients write as model; the name given as MODEL if left out.
        http: Where to listen, and limits.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    path = danlu.locate(model, home)
    from danlu.flow.stages.serve import ServeConfig, serve_model  # loads torch: only once the model is found

    config = ServeConfig(model_name=model_name or Path(model).stem, http=http)
    serve_model(path, config, Events(display=make_display()))
    return 0
