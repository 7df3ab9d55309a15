"""Serve models over HTTP with the OpenAI API, until Ctrl-C.

Each MODEL is a model folder or GGUF file, an alias, a stage of the latest run, an artifact id, or a hub id
(owner/name); NAME=MODEL says what clients write as model. What it can do follows from the model: chat and completions,
embeddings, ranking, labels (POST /predict), tagged spans, images. The engine runs in a process of its own, which is
started again should it crash.

Examples:
  danlu serve product-copy
  danlu serve ./my-model --port 9000 --model-name mine
  danlu serve chat=./llama.gguf search=./minilm          two models behind one port
  danlu serve ./llama --scheme int8 --engine.max-rows 16
  danlu serve ./llama --lora shop=./adapter-a --lora news=./adapter-b
  danlu serve product-copy --host 0.0.0.0 --api-key SECRET
  danlu serve ./llama --engine vllm --vllm-arg=--max-model-len=8192

Without --api-key the variable DANLU_API_KEY is used. With --engine vllm the same settings start `vllm serve` instead,
if that is installed. A recipe's serve stage has the same settings: `danlu schema --stage serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import danlu
from danlu.cli.display import make_display
from danlu.cli.options import Home
from danlu.core.errors import ConfigError
from danlu.core.events import Events
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import AdapterRequest
from danlu.serve.engine.spec import EngineSpec, ModelSpec, Precision, Scheme
from danlu.serve.http.config import HttpConfig

_KEY_VARIABLE = "DANLU_API_KEY"


def command(
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]MODEL ...")],
    *,
    model_name: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = (),
    precision: Precision | None = None,
    scheme: Scheme = "none",
    lora: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=FOLDER")] = (),
    threads: int | None = None,
    engine: Literal["danlu", "vllm"] = "danlu",
    vllm_arg: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="--NAME=VALUE")] = (),
    in_process: tyro.conf.FlagCreatePairsOff[bool] = False,
    http: tyro.conf.OmitArgPrefixes[HttpConfig] = HttpConfig(),  # noqa: B008 - frozen
    batching: Annotated[EngineConfig, tyro.conf.arg(name="engine")] = EngineConfig(),  # noqa: B008 - frozen
    home: Home = None,
) -> int:
    """Serve models.

    Args:
        models: Model folder or GGUF file, alias, stage of the latest run, artifact id, or hub id; a name before it.
        model_name: What clients write as model, for each MODEL in turn; its own name if left out.
        precision: Number type of plain weights; None picks bf16 where the machine is fast at it, else fp32.
        scheme: int8 quantises the weights while loading.
        lora: A LoRA adapter (PEFT folder) to serve under its own name; NAME@MODEL=FOLDER says whose it is.
        threads: Threads that compute; None for what is fastest here, by a short measurement at the start.
        engine: danlu, or vllm to start `vllm serve` with the same settings.
        vllm_arg: An option of `vllm serve` itself.
        in_process: Keep the engine in this process, for debugging.
        http: Where to listen, and limits.
        batching: How much at once.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    if not models:
        raise ConfigError("No model is given.", "For example: danlu serve product-copy")
    if vllm_arg and engine != "vllm":
        raise ConfigError("--vllm-arg is given without --engine vllm.", "Give both, or neither.")
    if http.api_key is None and os.environ.get(_KEY_VARIABLE):
        http = replace(http, api_key=os.environ[_KEY_VARIABLE])
    names = named(models, model_name)
    spec = EngineSpec(
        models=tuple(
            ModelSpec(name=name, path=str(danlu.locate(model, home)), precision=precision, scheme=scheme)
            for name, model in names
        ),
        adapters=tuple(_adapter(word, home) for word in lora),
        config=batching if threads is None else replace(batching, threads=threads),
    )
    if engine == "vllm":
        _run_vllm(spec, http, vllm_arg)
    from danlu.flow.serving import serve_models  # the server's libraries: only once the model is found

    serve_models(spec, http, Events(display=make_display()), is_in_process=in_process)
    return 0


def named(models: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and place of each model: NAME=MODEL, or a name of ``names`` in turn, or what the model is called itself."""
    if len(names) > len(models):
        raise ConfigError(f"{len(names)} names are given for {len(models)} models.", "Give at most one for each.")
    found: list[tuple[str, str]] = []
    for place, word in enumerate(models):
        name, is_named, model = word.partition("=")
        if not is_named or Path(word).exists():
            name, model = own_name(word), word
        found.append((names[place] if place < len(names) else name, model))
    return found


def own_name(model: str) -> str:
    """What a model is called that nobody named: the last part of its path or hub id."""
    name = Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2].partition("@")[0]
    return name.removesuffix(".gguf")


def _adapter(word: str, home: Path | None) -> AdapterRequest:
    name, is_named, folder = word.partition("=")
    name, _, model = name.partition("@")
    if not (is_named and name and folder):
        raise ConfigError(f"--lora is {word!r}.", "Write NAME=FOLDER, or NAME@MODEL=FOLDER.")
    return AdapterRequest(action="load", name=name, folder=str(danlu.locate(folder, home).resolve()), model=model)


def _run_vllm(spec: EngineSpec, http: HttpConfig, more: Sequence[str]) -> None:
    """Become `vllm serve`."""
    from danlu.serve.vllm import find_vllm, vllm_arguments, vllm_environment

    arguments = vllm_arguments(spec, http, more)
    words = [*find_vllm(), *arguments]
    print(f"Starting {' '.join(words)}\nLimits, routes and drain are vLLM's from here on.", file=sys.stderr, flush=True)
    os.execvpe(words[0], words, {**os.environ, **vllm_environment(http)})
