"""Descriptions of every package that the machine's apt knows, in a language: a large text on a Debian-like system.

Asks apt itself, in folders of our own: needs no root, changes nothing of the system's. What comes depends on the
machine's sources and the day; it is recorded by content. Knows nothing of what the texts say.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from danlu.core.errors import ConfigError, FetchError
from danlu.core.files import atomic_write

_LANGUAGE = re.compile(r"[a-z]{2,3}(_[A-Z]{2})?")


def fetch_descriptions(language: str, work: Path, out: Path) -> list[Path]:
    """Write the translation indexes of ``language`` into ``out``; ``work`` is for apt. FetchError when apt has none."""
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"language is {language!r}.", "Use a code such as en or zh_CN.")
    for name in ("lists/partial", "cache"):
        (work / name).mkdir(parents=True, exist_ok=True)
    settings = work / "apt.conf"
    with atomic_write(settings) as handle:
        handle.write(
            f'#clear Acquire::Languages;\nAcquire::Languages {{"{language}";}};\nAcquire::GzipIndexes "false";\n'
            f'APT::Sandbox::User "";\nDir::State::lists "{work / "lists"}";\nDir::Cache "{work / "cache"}";\n'
        )
    _apt(settings, "update")
    targets = ("indextargets", "--format", "$(FILENAME)", "Created-By: Translations", f"Language: {language}")
    found = [Path(line) for line in _apt(settings, *targets).splitlines() if Path(line).is_file()]
    if not found:
        raise FetchError(f"apt has no descriptions in {language}.", "Check the language and apt's sources.")
    made: list[Path] = []
    for path in sorted(found):
        target = out / path.name
        with open(path, "rb") as source, atomic_write(target, "wb") as handle:
            shutil.copyfileobj(source, handle)
        made.append(target)
    return made


def _apt(settings: Path, *arguments: str) -> str:
    try:
        ran = subprocess.run(["apt-get", "-c", str(settings), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        message = "Package descriptions come from apt-get, which is not on this machine."
        raise FetchError(message, "Run this on a Debian or Ubuntu system, or leave this source out.") from error
    if ran.returncode != 0:
        said = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise FetchError(
            f"apt-get {arguments[0]} failed: {said[-1].rstrip('.')}.", "Check the network and apt's sources."
        )
    return ran.stdout
