"""`vllm serve` instead of our engine and server, told the same settings in its own words.

What has no counterpart there is refused, never left out in silence. The limits, the drain and the routes are then
vLLM's. Knows nothing of how vLLM works; it is started as a program and never imported.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from danlu.core.errors import ConfigError, ResourceError
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.spec import EngineSpec
from danlu.serve.http.config import HttpConfig

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_KEY_VARIABLE = "VLLM_API_KEY"


def find_vllm() -> list[str]:
    """The words that start it: the program on PATH, or the module of this Python."""
    program = shutil.which("vllm")
    if program is not None:
        return [program]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    raise ResourceError(
        "vLLM is not installed: there is no program vllm on PATH, and no module of that name.",
        "Install it in an environment of its own (pip install vllm), put that on PATH, or leave --engine vllm out.",
    )


def vllm_arguments(spec: EngineSpec, http: HttpConfig, more: Sequence[str] = ()) -> list[str]:
    """Arguments of `vllm serve` that mean the same; ``more`` are vLLM's own, added at the end.

    Raises ConfigError for everything that it has no counterpart for.
    """
    _refuse(spec, http)
    model, engine = spec.models[0], spec.config
    words = ["serve", model.path, "--served-model-name", model.name, "--host", http.host, "--port", str(http.port)]
    if model.precision is not None:
        words += ["--dtype", _DTYPES[model.precision]]
    if "max_rows" in changed(engine):
        words += ["--max-num-seqs", str(engine.max_rows)]
    if "step_tokens" in changed(engine):
        words += ["--max-num-batched-tokens", str(engine.step_tokens)]
    if not engine.prefix_cache:
        words += ["--no-enable-prefix-caching"]
    if spec.adapters:
        words += ["--enable-lora", "--lora-modules", *(f"{one.name}={one.folder}" for one in spec.adapters)]
    return [*words, *more]


def vllm_environment(http: HttpConfig) -> dict[str, str]:
    """Variables to set beside the arguments: the key is in none of them, where other users could read it."""
    return {} if http.api_key is None else {_KEY_VARIABLE: http.api_key}


def changed(config: EngineConfig | HttpConfig) -> dict[str, Any]:
    """Settings that are not the defaults."""
    plain = type(config)()
    values = {one.name: getattr(config, one.name) for one in fields(config)}
    return {name: value for name, value in values.items() if value != getattr(plain, name)}


def _refuse(spec: EngineSpec, http: HttpConfig) -> None:
    model, *others = spec.models
    if others:
        raise ConfigError(f"{len(spec.models)} models are given; vllm serve takes one.", "Start one for each.")
    if model.scheme != "none":
        raise ConfigError(
            f"--scheme {model.scheme} has no counterpart in vLLM.",
            "Leave it out, or give vLLM's own: --vllm-arg=--quantization=….",
        )
    known = {"max_rows", "step_tokens", "prefix_cache", "host", "port", "api_key"}
    left = [name for name in [*changed(spec.config), *changed(http)] if name not in known]
    if left:
        raise ConfigError(
            f"{', '.join(left)} cannot be set with --engine vllm.",
            "Leave it out, or give vLLM's own option with --vllm-arg=--name=value.",
        )
