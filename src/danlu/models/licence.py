"""Under what terms a model may be used: read from a model folder or a GGUF file, and handed on to what is made of it.

A folder says it in the front matter of its card (README.md: license, license_name, license_link) and in files of its
own (LICENSE, NOTICE); a GGUF file in general.license and its kin. Knows no law: what the makers say is copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.files import atomic_write
from danlu.models.gguf import GGUFFile

_KNOWN_TEXTS = {
    "apache license": "apache-2.0", "mit license": "mit", "bsd 3-clause": "bsd-3-clause",
    "gnu affero general public": "agpl-3.0", "gnu lesser general public": "lgpl-3.0", "gnu general public": "gpl-3.0",
    "creative commons attribution 4.0": "cc-by-4.0", "creativeml open rail": "creativeml-openrail-m",
}  # fmt: skip
"""What the beginning of a licence's text says → its short name."""
_TEXTS = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""Files that go wherever the model goes."""
_KEYS = ("license", "license_name", "license_link")
_LINE = re.compile(rf"^({'|'.join(_KEYS)}):[ \t]*(?:\"([^\"]*)\"|'([^']*)'|([^\s#].*?))[ \t]*(?:#.*)?$", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z][\w.+-]*")
_OTHER = "other"
"""What cards and GGUF files call a licence of the makers' own; its name then stands in license_name."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a model's makers say of its use; empty when they say nothing."""

    identifier: str | None = None
    """Short name ("apache-2.0"; "other" for one of their own); None when no card says one."""
    name: str | None = None
    """The name of a licence of their own."""
    link: str | None = None
    """Where its text stands."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """LICENSE, NOTICE and the like: name of the file → content."""

    @property
    def title(self) -> str | None:
        """In a few words: the identifier or name, else what a text begins with, else which file to read."""
        if self.identifier is not None:
            return self.name or self.identifier if self.identifier == _OTHER else self.identifier
        return _known_text(self.texts) or next((f"see {file}" for file in _licences(self.texts)), None)


def read_licence(folder: Path) -> Licence:
    """What a model folder says."""
    texts = {path.name: path.read_bytes() for pattern in _TEXTS for path in folder.glob(pattern) if path.is_file()}
    card = folder / "README.md"
    front = _front_matter(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
    return Licence(**dict(zip(("identifier", "name", "link"), map(front.get, _KEYS), strict=True)), texts=texts)


def write_licence(licence: Licence, folder: Path) -> None:
    """Write its texts, and a card that names it unless the folder has a card already."""
    for file, content in licence.texts.items():
        with atomic_write(folder / file, "wb") as handle:
            handle.write(content)
    card = folder / "README.md"
    if licence.identifier is None or card.exists():
        return
    said = zip(_KEYS, (licence.identifier, licence.name, licence.link), strict=True)
    lines = [f"{key}: {_yaml(value)}\n" for key, value in said if value is not None]
    with atomic_write(card) as handle:
        handle.write("".join(["---\n", *lines, "---\n"]))


def licence_from_gguf(metadata: Mapping[str, Any]) -> Licence:
    """What the metadata of a GGUF file say."""
    keys = ("general.license", "general.license.name", "general.license.link")
    identifier, name, link = (None if metadata.get(key) is None else str(metadata[key]) for key in keys)
    return Licence(identifier=identifier, name=name, link=link)


def licence_to_gguf(licence: Licence) -> dict[str, str]:
    """The metadata of a GGUF file, which has no place for texts."""
    if licence.title is None:
        return {}
    identifier = licence.identifier or _known_text(licence.texts) or _OTHER
    name = licence.title if identifier == _OTHER and licence.title != _OTHER else licence.name
    said = {"general.license": identifier, "general.license.name": name, "general.license.link": licence.link}
    return {key: value for key, value in said.items() if value is not None}


def find_licence(path: Path) -> str | None:
    """The licence of a model folder or a GGUF file in a few words; None when nothing is said."""
    if path.is_file():
        return licence_from_gguf(GGUFFile(path).metadata).title if path.suffix == ".gguf" else None
    return read_licence(path).title


def _front_matter(card: str) -> dict[str, str]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    lines = _LINE.findall(found[1].replace("\r", "")) if found else []
    return {key: double or single or plain for key, double, single, plain in lines if double or single or plain}


def _yaml(value: str) -> str:
    line = " ".join(value.replace('"', "'").split())
    return line if _PLAIN.fullmatch(line) else json.dumps(line, ensure_ascii=False)


def _licences(texts: Mapping[str, bytes]) -> list[str]:
    return sorted(file for file in texts if file.startswith("LICEN"))


def _known_text(texts: Mapping[str, bytes]) -> str | None:
    for file in _licences(texts):
        begin = " ".join(texts[file][:400].decode("utf-8", "replace").lower().split())
        for words, short in _KNOWN_TEXTS.items():
            if words in begin:
                return short
    return None
