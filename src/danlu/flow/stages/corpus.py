"""Fetched files of one form → rows.jsonl, a text each, without repeats; characters rewritten by lists if given."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import write_jsonl
from danlu.data.sources.texts import Form, read_texts
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.text.variants import Variants


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How documents are read, and which are left out."""

    form: Form = "texts"
    """texts: .txt files or JSON lists of texts; poems: JSON lists with title, author and paragraphs; tagged_words:
    word/tag files; descriptions: Debian translation indexes."""
    min_characters: int = 20
    """Shorter documents are left out."""

    def __post_init__(self) -> None:
        if self.min_characters < 1:
            raise ConfigError(f"min_characters is {self.min_characters}.", "Use 1 or more.")


class Corpus(RecipeStage[CorpusConfig]):
    """The plugin."""

    config_type = CorpusConfig
    version = 1
    kind = "data"
    inputs: Mapping[str, str] = {"files": "fetched files, all of one form"}
    optional_inputs: Mapping[str, str] = {"variants": ".txt lists of characters and phrases to rewrite (text/variants)"}
    uses_seed = False

    def run(self, config: CorpusConfig, context: StageContext) -> dict[str, Any]:
        variants = None
        if "variants" in context.inputs:
            variants = Variants(sorted(context.inputs["variants"].rglob("*.txt")))
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()

        def rows() -> Iterator[dict[str, Any]]:
            seen: set[bytes] = set()
            folder = context.inputs["files"]
            with context.events.bar("read corpus", unit="documents") as bar:
                for path, raw in read_texts(folder, config.form):
                    bar.advance()
                    text = clean(raw)
                    if variants is not None:
                        text = variants.rewrite(text)
                    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
                    if len(text) < config.min_characters:
                        dropped["too_short"] += 1
                    elif digest in seen:
                        dropped["repeated"] += 1
                    else:
                        seen.add(digest)
                        counts.update(documents=1, characters=len(text), text_bytes=len(text.encode()))
                        yield {"text": text, "file": str(path.relative_to(folder))}

        write_jsonl(context.output / "rows.jsonl", rows())
        if not counts["documents"]:
            raise DataError(
                f"No document is left: {dropped['too_short']} have fewer than {config.min_characters} characters.",
                "Check form, or lower min_characters.",
            )
        return {**counts, "dropped": dict(dropped)}


def clean(text: str) -> str:
    """NFC, plain line ends, no spaces at line ends, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip()


def text_files(folder: Path) -> tuple[Path, ...]:
    """The .txt, .jsonl and .parquet files of an artifact; DataError when there is none."""
    files = tuple(p for p in sorted(folder.iterdir()) if p.suffix in (".txt", ".jsonl", ".parquet"))
    if not files:
        raise DataError(f"{folder} has no .txt, .jsonl or .parquet file.", "Give an artifact of rows with text.")
    return files


plugin = Corpus()
