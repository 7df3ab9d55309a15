"""Fine-tune a model on your own rows, in one command.

Writes a recipe (kept under .danlu/recipes, yours to edit: what you edited is not written over) and runs it: your rows
are read in any common form, split and audited, the model is trained, and what comes out has a report, a manifest and a
lineage. MODEL is a folder, a .gguf file, an alias, an artifact or a hub id; DATA a .jsonl, .parquet or .csv file, or a
folder with train.jsonl and maybe validation.jsonl and test.jsonl.

  task       rows
  sft        messages; conversations (ShareGPT); instruction, input, output (Alpaca); prompt and response
  classify   text and label; image and label; text, text_pair and score
  tag        tokens and tags, or text and spans
  embed      anchor and positive, with negatives or a score
  seq2seq    source and target
  pair       image and text
  dpo        prompt, chosen, rejected (or prompt, completion, label)

Examples:
  danlu finetune ./SmolLM2-135M-Instruct chats.jsonl --task sft --lora
  danlu finetune ./bert-base reviews.csv --task classify --columns text=review label=stars epochs=3
  danlu finetune my-model chats.jsonl --lora steps=200 lora.rank=16 optim.learning_rate=1e-3 --name my-model-v2
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any

import tyro

import danlu
from danlu.cli.display import make_display
from danlu.cli.options import Home
from danlu.core.config import parse_override, set_path
from danlu.core.errors import ConfigError, nearest
from danlu.core.files import atomic_write

TASKS = ("sft", "classify", "tag", "embed", "seq2seq", "pair", "dpo", "reward", "distil")


def command(
    model: tyro.conf.Positional[str],
    data: tyro.conf.Positional[Path],
    overrides: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = (),
    *,
    task: str = "sft",
    lora: tyro.conf.FlagCreatePairsOff[bool] = False,
    full: tyro.conf.FlagCreatePairsOff[bool] = False,
    columns: tuple[str, ...] = (),
    name: str = "",
    seed: int = 17,
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False,
    home: Home = None,
) -> int:
    """Fine-tune.

    Args:
        model: What to start from.
        data: Your rows.
        overrides: Settings of the training stage, for example steps=200 lora.rank=16; `danlu schema` lists them.
        task: What to learn: sft, classify, tag, embed, seq2seq, pair, dpo, reward or distil.
        lora: Train an adapter on the frozen model.
        full: Train all weights.
        columns: Your columns by our names, for example text=review label=stars.
        name: Alias of the result; DATA's name and the task if left out.
        seed: For everything random.
        dry_run: Write the recipe and end.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    if task not in TASKS:
        raise ConfigError(f"task is {task!r}.", nearest(task, TASKS))
    if lora and full:
        raise ConfigError("--lora and --full are both given.", "Give one of them.")
    if not data.exists():
        raise ConfigError(f"{data} does not exist (from {Path.cwd()}).", "Give a file or a folder of rows.")
    store = Path(home or danlu.home())
    source = danlu.locate(model, store)
    _refuse_nothing(source, data)
    name = name or f"{data.stem}-{task}".lower().replace("_", "-").replace(".", "-")
    columns, more = _apart(columns, task)
    recipe = build(name, str(source), data, task, dict(_pair(text) for text in columns), seed)
    training: dict[str, Any] = recipe["stages"][-1]
    if lora:
        training["lora"] = {}
    if full:
        training["lora"] = None
    for text in (*overrides, *more):
        keys, value = parse_override(text)
        if training.get(keys[0]) is None and len(keys) > 1:
            training[keys[0]] = {}
        set_path(training, keys, value)
    path = _write(recipe, store / "recipes" / f"{name}.yaml")
    display = make_display()
    display.say(f"Recipe: {path}")
    if dry_run:
        return 0
    result = danlu.run(path, store=store, display=display)
    made = result.artifacts["train"]
    report = made.path / "training.html"
    display.say(f"Done: '{name}' is {made.id[:10]}, {made.path}" + (f"; report {report}" if report.is_file() else ""))
    if made.manifest.kind == "adapter":
        display.say("It is an adapter (PEFT's format). Merge it with a `merge` stage, or load it in PEFT as it is.")
    return 0


def _refuse_nothing(model: Path, data: Path) -> None:
    """Say early and in the person's own words what a stage would find late in its own."""
    if model.is_dir() and not ((model / "config.json").is_file() or any(model.glob("*.gguf"))):
        raise ConfigError(f"{model} holds no model: no config.json and no .gguf file.", "Give a model's own folder.")
    if model.is_file() and model.suffix != ".gguf":
        raise ConfigError(f"{model} is no model.", "Give a folder with config.json, or a .gguf file; then your rows.")
    if data.is_dir() and not any(path.is_file() for path in data.iterdir()):
        raise ConfigError(f"{data} is an empty folder.", "Give a file of rows, or a folder with train.jsonl.")
    if data.is_file() and data.stat().st_size == 0:
        raise ConfigError(f"{data} is empty (0 bytes).", "Give a file with rows, or make it again.")


def build(name: str, model: str, data: Path, task: str, columns: dict[str, str], seed: int) -> dict[str, Any]:
    """The recipe of one fine-tuning."""
    return {
        "name": name,
        "seed": seed,
        "stages": [
            {"name": "weights", "use": "fetch", "path": str(Path(model).absolute())},
            {"name": "base", "use": "convert", "inputs": {"weights": "weights"}},
            {"name": "file", "use": "fetch", "path": str(data.absolute())},
            {"name": "data", "use": "rows", "inputs": {"rows": "file"}, "task": task, "columns": columns},
            {"name": "train", "use": task, "inputs": {"model": "base", "data": "data"}},
        ],
        "aliases": {name: "train"},
    }


def _apart(words: tuple[str, ...], task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns, and settings that follow them on the command line: those begin with a field of the task's config."""
    if not words:
        return (), ()
    from danlu.flow.recipe import load_stage

    fields = {field.name for field in dataclasses.fields(load_stage(task).config_type)}
    settings = tuple(text for text in words if text.partition("=")[0].partition(".")[0] in fields)
    return tuple(text for text in words if text not in settings), settings


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise ConfigError(f"columns has {text!r}.", "Write ours=yours, for example text=review.")
    return ours, theirs


def _write(recipe: dict[str, Any], path: Path) -> Path:
    """Keep the recipe. The first line holds a hash of the others, which tells a file that the person has edited."""
    import yaml

    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if path.is_file():
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if rest != text and not first.endswith(f" {_digest(rest)}"):
            raise ConfigError(
                f"{path} is not as `danlu finetune` left it, and another recipe would be written over it.",
                f"Run it as it is with `danlu run {path}`, or give another --name.",
            )
    with atomic_write(path) as file:
        file.write(
            f"# Written by `danlu finetune`; run it again with `danlu run {path}`. As written: {_digest(text)}\n"
        )
        file.write(text)
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
