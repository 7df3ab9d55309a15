"""Serve a model over HTTP until told to stop; prints how to talk to it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.events import Events
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.serve.engine.engine import Engine, EngineConfig
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import reserve_port, serve


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The model's public name, where to listen, how much at once."""

    model_name: str = "model"
    """What clients write as ``model``."""
    example: str = "Write product copy.\nTitle: Soft summer dress\nClass: Dresses\nMaterial: cotton\nColour: navy"
    """The message in the printed examples."""
    http: HttpConfig = field(default_factory=HttpConfig)
    """The HTTP server."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Batching."""


class Serve(RecipeStage[ServeConfig]):
    """The plugin."""

    config_type = ServeConfig
    version = 1
    kind = "service"
    service = True
    inputs: Mapping[str, str] = {"model": "the model folder to serve"}

    def check(self, config: ServeConfig) -> None:
        """A port in use is known before the long job starts, not after it."""
        reserve_port(config.http.host, config.http.port).close()

    def run(self, config: ServeConfig, context: StageContext) -> dict[str, Any]:
        serve_model(context.inputs["model"], config, context.events)
        return {}


def serve_model(path: Path, config: ServeConfig, events: Events) -> None:
    """Load the model at ``path`` and serve it until SIGINT or SIGTERM."""
    sock = reserve_port(config.http.host, config.http.port)
    try:
        engine = Engine(load_model(path, is_packed=True), config.model_name, config.engine)
    except BaseException:
        sock.close()
        raise
    serve(engine, config.http, lambda url: _tell(url, config, events), sock)


def _tell(url: str, config: ServeConfig, events: Events) -> None:
    body = json.dumps(
        {"model": config.model_name, "messages": [{"role": "user", "content": config.example}], "max_tokens": 80},
        ensure_ascii=False,
    )
    key = "" if config.http.api_key is None else " -H 'Authorization: Bearer YOUR_KEY'"
    events.say(f"Serving {config.model_name} at {url}  (open it in a browser to try; Ctrl-C stops)")
    events.say(
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
    )  # fmt: skip
    api_key = "unused" if config.http.api_key is None else "YOUR_KEY"
    program = (
        f"from openai import OpenAI; client = OpenAI(base_url={url + '/v1'!r}, api_key={api_key!r}); "
        f"messages = [{{'role': 'user', 'content': {config.example!r}}}]; "
        f"answer = client.chat.completions.create(model={config.model_name!r}, max_tokens=80, messages=messages); "
        "print(answer.choices[0].message.content)"
    )
    events.say(f"  python -c {_quoted(program)}")


def _quoted(program: str) -> str:
    """For a shell: in double quotes where nothing in it means anything there, which reads better."""
    return shlex.quote(program) if set(program) & set('"$`!') or "\\\\" in program else f'"{program}"'


plugin = Serve()
