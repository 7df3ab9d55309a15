"""Serve a model over HTTP until told to stop; prints how to talk to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.flow.recipe import RecipeStage
from danlu.flow.serving import EXAMPLE, serve_models
from danlu.lineage.stage import StageContext
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import AdapterRequest
from danlu.serve.engine.spec import EngineSpec, ModelSpec, Precision, Scheme
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import reserve_port


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The model's public name and form, where to listen, how much at once."""

    model_name: str = "model"
    """What clients write as ``model``."""
    precision: Precision | None = None
    """Number type of plain weights; none picks bf16 where the machine is fast at it, else fp32."""
    scheme: Scheme = "none"
    """"int8" quantises the weights while loading."""
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name to folder of LoRA adapters that are served beside the model, each under its own name."""
    example: str = EXAMPLE
    """The message in the printed examples."""
    in_process: bool = False
    """Whether the engine stays in this process; a crash then ends the server too."""
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
        model = ModelSpec(
            name=config.model_name, path=str(context.inputs["model"]), precision=config.precision, scheme=config.scheme
        )
        adapters = tuple(
            AdapterRequest(action="load", name=name, folder=folder) for name, folder in config.adapters.items()
        )
        spec = EngineSpec(models=(model,), adapters=adapters, config=config.engine)
        serve_models(
            spec, config.http, context.events, example=config.example, is_in_process=config.in_process
        )  # fmt: skip
        return {}


plugin = Serve()
