from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, FetchError
from danlu.data.sources.apt import fetch_descriptions


def test_translation_indexes_are_fetched_into_folders_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "work" / "lists" / "main_Translation-en"
    commands: list[list[str]] = []

    def ran(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        settings = Path(command[2]).read_text()
        assert f'Dir::State::lists "{tmp_path / "work" / "lists"}";' in settings
        assert 'Acquire::Languages {"en";};' in settings
        if command[3] == "update":
            index.write_text("Package: toy\n")
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 0, f"{index}\n/nowhere/else\n", "")

    monkeypatch.setattr(subprocess, "run", ran)
    (tmp_path / "out").mkdir()
    assert fetch_descriptions("en", tmp_path / "work", tmp_path / "out") == [tmp_path / "out" / index.name]
    assert (tmp_path / "out" / index.name).read_text() == "Package: toy\n"
    assert "Language: en" in commands[1]


def test_a_machine_without_apt_or_descriptions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(command: list[str], **options: object) -> None:
        raise FileNotFoundError("apt-get")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(FetchError, match=r"come from apt-get, which is not on this machine\. Run this on a Debian"):
        fetch_descriptions("en", tmp_path, tmp_path)

    def failed(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: no network\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(FetchError, match=r"apt-get update failed: E: no network\. Check the network and apt's sources"):
        fetch_descriptions("en", tmp_path, tmp_path)

    def empty(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", empty)
    with pytest.raises(FetchError, match=r"apt has no descriptions in zh_CN\. Check the language"):
        fetch_descriptions("zh_CN", tmp_path, tmp_path)


def test_a_language_is_a_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"language is 'en\"; x'\. Use a code such as en or zh_CN"):
        fetch_descriptions('en"; x', tmp_path, tmp_path)
