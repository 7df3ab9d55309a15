"""Train a tokenizer for Chinese and English, or compare two by characters per token on a text.

`train` writes tokenizer.json, tokenizer_config.json (with a chat template) and a report into a folder that danlu and
other Hugging Face tools load. `compare` takes folders or tokenizer.json files.

Examples:
  danlu tokenizer train articles.jsonl notes.txt --out my-tokenizer --vocabulary-size 32000
  danlu tokenizer compare my-tokenizer other-model/ held_out.txt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from danlu.cli.display import make_display, result_console
from danlu.core.errors import ModelError
from danlu.core.events import Events
from danlu.core.files import read_json
from danlu.text.bpe import BPEConfig, Density, measure, train_bpe
from danlu.text.corpus import Corpus

if TYPE_CHECKING:
    from danlu.text.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a byte-level BPE vocabulary on files and measure it on documents kept aside."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Text to learn from: .txt (a document a paragraph), .jsonl, .parquet."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write."""
    column: str = "text"
    """Column or key of the text in .jsonl and .parquet files; messages work too."""
    max_rows: int = 0
    """Most documents of each file; 0 means all."""
    bpe: Annotated[BPEConfig, tyro.conf.arg(name="")] = field(default_factory=BPEConfig)
    """How the vocabulary is trained."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Characters per token of two tokenizers on the same text, by language."""

    first: tyro.conf.Positional[Path]
    """A folder with a tokenizer, or a tokenizer.json."""
    second: tyro.conf.Positional[Path]
    """The other one."""
    file: tyro.conf.Positional[Path]
    """Text neither was trained on: .txt, .jsonl or .parquet."""
    column: str = "text"
    """Column or key of the text in .jsonl and .parquet files."""
    max_rows: int = 0
    """Most documents; 0 means all."""


Action = Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Compare, tyro.conf.subcommand("compare")]


def command(action: Annotated[Action, tyro.conf.arg(name="")]) -> int:
    """Train a tokenizer, or compare two."""
    return _train(action) if isinstance(action, Train) else _compare(action)


def _train(action: Train) -> int:
    corpus = Corpus(files=action.files, column=action.column, max_rows=action.max_rows)
    trained = train_bpe(corpus, action.bpe, Events(display=make_display()))
    trained.save(action.out)
    characters = ", ".join(f"{count:,} {language}" for language, count in trained.trained_characters.items() if count)
    print(f"{action.out}: {trained.tokenizer.vocabulary_size:,} tokens from {characters} characters")
    for language, density in trained.density.items():
        print(_line(language, density))
    return 0


def _line(language: str, density: Density) -> str:
    documents = f"{density.documents:,} documents kept aside"
    return f"{language}: {density.characters_per_token:.3f} characters per token on {documents}"


def _compare(action: Compare) -> int:
    from rich.table import Table

    corpus = list(Corpus(files=(action.file,), column=action.column, max_rows=action.max_rows))
    first, second = (measure(_load(path), corpus) for path in (action.first, action.second))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("characters per token")
    for column in (action.first.name, action.second.name, "ratio", "characters"):
        table.add_column(column, justify="right")
    for language, ours in first.items():
        one, other = ours.characters_per_token, second[language].characters_per_token
        table.add_row(language, f"{one:.3f}", f"{other:.3f}", f"{one / other:.3f}", f"{ours.characters:,}")
    result_console().print(table)
    return 0


def _load(path: Path) -> TextTokenizer:
    from danlu.text.tokenizer import load_tokenizer

    folder = path.parent if path.name == "tokenizer.json" else path
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.", "Give a folder with a tokenizer, or a tokenizer.json.")
    config = folder / "tokenizer_config.json"
    return load_tokenizer(folder, read_json(config) if config.is_file() else {})
