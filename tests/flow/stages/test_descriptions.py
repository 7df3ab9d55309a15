from __future__ import annotations

from pathlib import Path

import pytest

import danlu
from danlu.flow.stages import descriptions


def test_the_indexes_become_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(language: str, work: Path, out: Path) -> list[Path]:
        (out / f"Translation-{language}").write_text("Package: toy\n")
        return [out / f"Translation-{language}"]

    monkeypatch.setattr(descriptions, "fetch_descriptions", fetch)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nstages:\n  - {name: packages, use: descriptions, language: zh_CN}\n")
    artifact = danlu.run(recipe, store=tmp_path / "home").artifacts["packages"]
    assert list(artifact.manifest.files) == ["Translation-zh_CN"]
    assert artifact.manifest.metrics == {"files": 1, "size_bytes": 13}
