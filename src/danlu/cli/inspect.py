"""Say what a model is and what it costs: parameters, memory, FLOPs, cache, context, tokenizer, licence, tensors.

MODEL is a model folder, a .gguf file, a config.json, an alias, a stage of the latest run, an artifact id, or a hub id
(owner/name). No weight is read. KEY=VALUE changes the config first: what would it cost with twice the layers?

Examples:
  danlu inspect product-copy
  danlu inspect ./model.gguf --tensors
  danlu inspect ./my-model num_hidden_layers=60 --length 4096
  danlu inspect --family llama vocab_size=32000 hidden_size=4096 intermediate_size=11008 num_hidden_layers=32 \
num_attention_heads=32 max_position_embeddings=4096
"""

from __future__ import annotations

import json as json_library
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

import danlu
from danlu.cli.display import result_console
from danlu.cli.options import Home
from danlu.core.errors import ConfigError

if TYPE_CHECKING:
    from danlu.models.counts import Counts
    from danlu.models.inspect import ModelFacts


def command(
    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [KEY=VALUE ...]")] = (),
    *,
    family: str | None = None,
    length: int | None = None,
    tensors: tyro.conf.FlagCreatePairsOff[bool] = False,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    home: Home = None,
) -> int:
    """Say what a model is and what it costs.

    Args:
        words: The model, then KEY=VALUE changes of its config.json (values as in JSON).
        family: Count a model that is nowhere yet: this family, with the KEY=VALUE given.
        length: Tokens of the row that FLOPs are counted for; the whole context if left out.
        tensors: List what is stored.
        json: Print everything as JSON.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    if family is None and (not words or "=" in words[0]):
        raise ConfigError("There is no model to inspect.", "Name one, or a --family with the KEY=VALUE of its config.")
    changes = _changes(words if family is not None else words[1:])
    path = None if family is not None else danlu.locate(words[0], home)
    from danlu.models.inspect import as_mapping, inspect_config, inspect_model  # loads torch: only now

    if path is None:
        facts = inspect_config({"model_type": family, **changes}, length)
    else:
        facts = inspect_model(path, changes, length)
    if json:
        print(json_library.dumps(as_mapping(facts, tensors=tensors), indent=2, ensure_ascii=False))
    else:
        show(facts, result_console(), tensors=tensors)
    return 0


def _changes(words: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE with values as in JSON; what is no JSON is a text."""
    changes: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"{word!r} is not KEY=VALUE.", "For example num_hidden_layers=12.")
        try:
            changes[key] = json_library.loads(value)
        except ValueError:
            changes[key] = value
    return changes


# ---- drawing ---------------------------------------------------------------------------------------------------------


def show(facts: ModelFacts, console: Console, *, tensors: bool) -> None:
    """Draw all of it; ``tensors`` lists what is stored."""
    title = Text(facts.source or facts.family, style="bold", overflow="fold")
    console.print(Group(title, _grid(_rows(facts))))
    console.print(Text(_definition(facts.counts), style="dim"))
    if tensors:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("tensor", overflow="fold")
        table.add_column("shape")
        table.add_column("type")
        table.add_column("bytes", justify="right")
        for tensor in facts.tensors:
            shape = " × ".join(map(str, tensor.shape)) or "1"
            table.add_row(tensor.name, shape, tensor.dtype, f"{tensor.size_bytes:,}")
        console.print(table)


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    return grid


def _rows(facts: ModelFacts) -> list[tuple[str, str]]:
    counts = facts.counts
    shape = f"{facts.layers} layers, width {facts.width}, " if facts.layers else ""
    rows = [
        ("family", f"{facts.family}, head {facts.head}"),
        ("shape", f"{shape}context {facts.context:,} tokens" if counts.unit != "image" else f"{shape}images"),
        ("parameters", f"{_short(counts.parameters)} ({counts.parameters:,})"),
    ]
    if counts.active_parameters != counts.parameters:
        rows.append(("  active", f"{_short(counts.active_parameters)} ({counts.active_parameters:,}) a token"))
    if counts.embedding_parameters:
        rows.append(("  embedding", f"{counts.embedding_parameters:,}, others {counts.other_parameters:,}"))
    rows.append(("memory", ", ".join(f"{name} {_bytes(size)}" for name, size in counts.memory_bytes.items())))
    if facts.tensors:
        kinds: dict[str, int] = {}
        for tensor in facts.tensors:
            kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.size_bytes
        parts = ", ".join(f"{kind} {_bytes(size)}" for kind, size in sorted(kinds.items()))
        scheme = f", quantised as {facts.scheme}" if facts.scheme else ""
        rows.append(("stored", f"{_bytes(facts.stored_bytes)} in {len(facts.tensors)} tensors ({parts}){scheme}"))
    rows += _work(counts)
    return rows + _words(facts)


def _work(counts: Counts) -> list[tuple[str, str]]:
    share = counts.attention_flops / max(counts.forward_flops, 1)
    rows = [
        ("FLOPs", f"{_short(counts.forward_flops)} a{_n(counts.unit)} {counts.unit} forward, {share:.0%} in attention"),
        ("  training", f"{_short(counts.training_flops)} a{_n(counts.unit)} {counts.unit} forward and backward"),
    ]
    cache = counts.cache
    if cache is None:
        return rows
    if any(cache.bytes_per_token.values()):
        by_type = ", ".join(f"{name} {_bytes(size)}" for name, size in cache.bytes_per_token.items())
        rows.append(("cache", f"{by_type} a token"))
    full = ", ".join(f"{name} {_bytes(size)}" for name, size in cache.bytes_at_context.items())
    rows.append(("  full context", f"{full} a row"))
    if cache.state_bytes:
        rows.append(("  states", f"{_bytes(cache.state_bytes)} a row, however long"))
    if any(cache.memory_bytes_per_token.values()):
        by_type = ", ".join(f"{name} {_bytes(size)}" for name, size in cache.memory_bytes_per_token.items())
        rows.append(("  source", f"{by_type} a token that was read"))
    return rows


def _words(facts: ModelFacts) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    tokenizer = facts.tokenizer
    if tokenizer is not None:
        template = "chat template" if tokenizer.has_chat_template else "no chat template"
        special = f"{len(tokenizer.special_tokens)} special"
        rows.append(("tokenizer", f"{tokenizer.kind}, {tokenizer.vocabulary_size:,} tokens, {special}, {template}"))
        if tokenizer.end_tokens:
            rows.append(("  answers end", " ".join(tokenizer.end_tokens)))
    elif facts.tensors:
        rows.append(("tokenizer", "none"))
    if facts.licence or facts.tensors:
        rows.append(("licence", facts.licence or "not said; ask whoever made it"))
    return rows


def _definition(counts: Counts) -> str:
    means = {"token": f"mean over a row of {counts.length:,}", "image": f"{counts.length:,} embeddings an image"}
    where = means.get(counts.unit, f"an image and {counts.length:,} tokens")
    active = "; active: what one token meets" if counts.active_parameters != counts.parameters else ""
    return f"FLOPs: 2 a multiply-add of matrix products, {where}; training 3 × forward{active}."


def _n(word: str) -> str:
    return "n" if word[0] in "aeiou" else ""


def _short(number: float) -> str:
    """1.23 B and the like."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    """Decimal units, as disks and danlu's other screens have them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f} B"
