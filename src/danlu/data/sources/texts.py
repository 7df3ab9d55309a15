"""Documents of plain text out of files that hold them in other forms: poems, tagged words, descriptions of packages.

Each reader goes through a folder's files in the order of their names and yields one text a document. What a form does
not allow is a DataError naming the file. Knows nothing of tokens; cleaning beyond the form's own marks is not its work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from danlu.core.errors import DataError
from danlu.core.files import read_json, utf8_lines

Form = Literal["texts", "poems", "tagged_words", "descriptions"]
Texts = Iterator[tuple[Path, str]]
"""The file, and a document in it."""

_TITLES = ("title", "rhythmic", "chapter")
_BODIES = ("paragraphs", "content", "para")
_MIRRORED = {"``": '"', "''": '"'}
_NO_SPACE_BEFORE = re.compile(r" (?=[,.;:?!)\]}%]|'(?:s|t|re|ve|m|ll|d)?\b)")
_NO_SPACE_AFTER = re.compile(r"(?<=[(\[{$]) ")


def read_texts(folder: Path, form: Form) -> Texts:
    """Documents of every file below ``folder``; DataError when there is no file, or one is not of the form."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "manifest.json")
    if not files:
        raise DataError(f"{folder} holds no files.", "Check the stage that made it.")
    for path in files:
        for text in READERS[form](path):
            yield path, text


def _plain(path: Path) -> Iterator[str]:
    """A .json list of texts, a document each; any other file is one document."""
    if path.suffix != ".json":
        yield "".join(utf8_lines(path))
        return
    for text in _list(path):
        if not isinstance(text, str):
            raise DataError(f"{path} has {text!r:.60} among its texts.", "Give a JSON list of texts.")
        yield text


def _poems(path: Path) -> Iterator[str]:
    """A .json list of objects with title, author and paragraphs: title and author, then a line each paragraph."""
    for poem in _list(path):
        if not isinstance(poem, dict):
            raise DataError(f"{path} has {poem!r:.60} among its poems.", "Give a JSON list of objects.")
        values = cast("dict[str, Any]", poem)
        lines = next((values[key] for key in _BODIES if key in values), None)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise DataError(f"{path} has a poem without lines: {poem!r:.60}.", f"Use one of {', '.join(_BODIES)}.")
        title = next((values[key] for key in _TITLES if values.get(key)), "")
        head = [part for part in (title, values.get("author")) if isinstance(part, str) and part]
        body = "\n".join(line for line in lines if line.strip())
        yield "\n".join([*head, "", body]) if body and head else body


def _tagged_words(path: Path) -> Iterator[str]:
    """One document of sentences like ``The/at jury/nn said/vbd``, a line each; blank lines part paragraphs."""
    paragraphs: list[list[str]] = [[]]
    for line in utf8_lines(path):
        if not line.strip():
            paragraphs.append([])
            continue
        words: list[str] = []
        for token in line.split():
            word, slash, _ = token.rpartition("/")
            if not slash or not word:
                raise DataError(f"{path} has {token!r:.60}, a word without a tag.", "Give files of word/tag.")
            if word not in ("?", "!", ";", ":") or words[-1:] != [word]:  # such marks stand twice in this form
                words.append(word)
        paragraphs[-1].append(join_words(words))
    text = "\n".join(" ".join(sentences) for sentences in paragraphs if sentences)
    if text:
        yield text


def join_words(words: list[str]) -> str:
    """Words and marks as they are written: no space before a comma, none inside quotation marks."""
    pieces: list[str] = []
    for word in words:
        is_closing = word == "''"
        is_first = not pieces or pieces[-1].endswith("\0")
        pieces.append(("" if is_closing or is_first else " ") + _MIRRORED.get(word, word) + ("\0" * (word == "``")))
    text = "".join(pieces).replace("\0", "")
    return _NO_SPACE_AFTER.sub("", _NO_SPACE_BEFORE.sub("", text))


def _descriptions(path: Path) -> Iterator[str]:
    """A Debian translation index: of each description the synopsis, then its paragraphs, each on one line.

    Packages that share a description give it once.
    """
    seen: set[str] = set()
    for paragraph in _stanzas(path):
        digest = paragraph.get("Description-md5", "")
        name = next((key for key in paragraph if key.startswith("Description-") and key != "Description-md5"), None)
        if name is None:
            raise DataError(f"{path} has a paragraph without a description.", "Give a Translation-LANGUAGE file.")
        if digest not in seen:
            seen.add(digest)
            synopsis, _, rest = paragraph[name].partition("\n")
            yield "\n".join([f"{paragraph.get('Package', '')}: {synopsis.strip()}", *_unfolded(rest)])


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Paragraphs of ``Key: value`` lines, values going on in lines that begin with a space (deb822(5))."""
    values: dict[str, str] = {}
    key = ""
    for line in utf8_lines(path):
        line = line.rstrip("\n")
        if not line:
            if values:
                yield values
            values, key = {}, ""
        elif line[0] in " \t" and key:
            values[key] += f"\n{line}"
        else:
            key, colon, value = line.partition(":")
            if not colon:
                raise DataError(f"{path} has the line {line!r:.60}, which is no 'Key: value'.", "Is it an index?")
            values[key] = value.strip()
    if values:
        yield values


def _unfolded(text: str) -> Iterator[str]:
    """Paragraphs that were wrapped, as one line each; lines with two spaces in front stay (Debian policy 5.6.13)."""
    words: list[str] = []
    for line in text.split("\n"):
        if line.strip() not in ("", ".") and not line.startswith("  "):
            words.append(line.strip())
            continue
        if words:
            yield " ".join(words)
            words = []
        if line.startswith("  "):
            yield line[2:].rstrip()
    if words:
        yield " ".join(words)


def _list(path: Path) -> list[Any]:
    values = read_json(path)
    if not isinstance(values, list):
        raise DataError(f"{path} holds no JSON list.", "Fetch only files of this form.")
    return cast("list[Any]", values)


READERS: Mapping[Form, Callable[[Path], Iterator[str]]] = {
    "texts": _plain,
    "poems": _poems,
    "tagged_words": _tagged_words,
    "descriptions": _descriptions,
}
"""A reader of one file for each form."""
