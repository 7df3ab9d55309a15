"""Packages of every registry, taken from the cache: nothing is asked of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import danlu
from danlu.core.errors import ConfigError
from danlu.flow.stages.fetch import FetchConfig
from tests.data.sources.packages_on_disk import write_deb, write_npm, write_wheel

RECIPE = """
name: r
stages:
  - {{name: files, use: fetch, registry: {registry}, package: toy, version: "1", member: "{member}", sha256: {sha256}}}
"""


@pytest.mark.parametrize(
    ("registry", "suffix", "write"),
    [("pypi", "whl", write_wheel), ("npm", "tgz", write_npm), ("apt", "deb", write_deb)],
)
def test_a_package_of_each_registry_gives_one_file_or_all_that_match(
    tmp_path: Path, registry: str, suffix: str, write: Callable[[Path], Path]
) -> None:
    content = write(tmp_path / "package").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    cached = tmp_path / "home" / "cache" / sha256 / f"toy.{suffix}"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    recipe = tmp_path / "r.yaml"
    for member, files in (("data/*.json", ["data/a.json", "data/b.json"]), ("data/a.json", ["a.json"])):
        recipe.write_text(RECIPE.format(registry=registry, member=member, sha256=sha256))
        artifact = danlu.run(recipe, store=tmp_path / "home").artifacts["files"]
        assert sorted(artifact.manifest.files) == files
        assert artifact.manifest.metrics["files"] == len(files)


def test_many_files_have_no_one_name() -> None:
    with pytest.raises(ConfigError, match=r"filename is 'x', but member may be many files\. Leave filename out"):
        FetchConfig(package="p", version="1", member="*.json", sha256="0" * 64, filename="x")
