"""Run an external command as a stage: what it leaves in {output} is the artifact, its metrics.json the metrics.

Knows nothing of what the command does. It runs in the folder danlu was started in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, ScriptError, nearest
from danlu.core.files import read_json, sha256_file
from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.lineage.stage import StageContext

_PLACEHOLDER = re.compile(r"\{(output|work|seed|input ([a-z0-9_-]+))\}")
_SAY_EVERY_S = 2.0
_TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class ScriptConfig:
    """An external command."""

    command: tuple[str, ...]
    """The program and its arguments, one by one; no shell. ``python`` is danlu's own Python. Placeholders:
    {input NAME} and {output} are folders, {work} survives a restart, {seed} is the recipe's seed."""

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError("command is empty.", "Give the program and its arguments, for example [python, a.py].")


class Script(RecipeStage[ScriptConfig]):
    """The plugin."""

    config_type = ScriptConfig
    version = 1
    kind = "script"
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "{input NAME} in the command becomes its folder"}

    def check(self, config: ScriptConfig) -> None:
        for argument in config.command[1:]:
            if argument.endswith(".py") and not _PLACEHOLDER.search(argument) and not Path(argument).is_file():
                raise ConfigError(f"The script {argument} does not exist (from {Path.cwd()}).", "Mend the command.")

    def fingerprint(self, config: ScriptConfig) -> dict[str, Any]:
        """Hashes of the files the command names, so that an edited script runs again."""
        files = [argument for argument in config.command if os.path.isfile(argument)]
        return {"files": {name: sha256_file(Path(name)) for name in files}}

    def run(self, config: ScriptConfig, context: StageContext) -> dict[str, Any]:
        command = [_fill(argument, context) for argument in config.command]
        title = " ".join(Path(argument).name for argument in config.command[:2])
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        tail = _stream(command, title, context)
        if tail is not None:
            raise ScriptError(f"{title} failed ({tail[0]}). It ended with:\n{tail[1]}", "Mend what it names.")
        path = context.output / "metrics.json"
        return read_json(path) if path.is_file() else {}


def _fill(argument: str, context: StageContext) -> str:
    """``argument`` with its placeholders replaced."""

    def value(match: re.Match[str]) -> str:
        if match[1] in ("output", "work", "seed"):
            return str(getattr(context, match[1]))
        if match[2] not in context.inputs:
            raise ConfigError(f"command names {match[0]}, which is no input.", nearest(match[2], context.inputs))
        return str(context.inputs[match[2]])

    return _PLACEHOLDER.sub(value, argument)


def _stream(command: list[str], title: str, context: StageContext) -> tuple[str, str] | None:
    """Run it, showing a line every few seconds; None, or how it failed and the last lines it wrote."""
    last: deque[str] = deque(maxlen=_TAIL_LINES)
    said = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    except OSError as error:
        raise ScriptError(f"{command[0]} could not be started: {error.strerror}.", "Is it installed?") from error
    assert process.stdout is not None
    try:
        with context.events.bar(title, unit="lines") as bar, process.stdout:
            for line in process.stdout:
                last.append(line.rstrip())
                bar.advance()
                if line.strip() and time.monotonic() - said >= _SAY_EVERY_S:
                    context.events.say(f"  {line.rstrip()}")
                    said = time.monotonic()
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status == 0:
        return None
    return (f"signal {-status}" if status < 0 else f"exit status {status}"), "\n".join(last)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask it to stop, then make it."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


plugin = Script()
