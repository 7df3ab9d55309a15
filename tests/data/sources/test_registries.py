from __future__ import annotations

import subprocess

import pytest

from danlu.core.errors import FetchError
from danlu.data.sources.registries import ask_apt, ask_npm


def client(monkeypatch: pytest.MonkeyPatch, stdout: str = "", stderr: str = "", status: int = 0) -> list[list[str]]:
    """A client that says this; returns the commands it got."""
    commands: list[list[str]] = []

    def ran(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", ran)
    return commands


def test_npm_names_the_tarball(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = client(monkeypatch, "https://x.invalid/toy-1.0.tgz\n", "npm warn something\n")
    assert ask_npm("@scope/toy", "1.0") == "https://x.invalid/toy-1.0.tgz"
    assert commands == [["npm", "view", "@scope/toy@1.0", "dist.tarball"]]


def test_npm_that_knows_no_such_version_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    client(monkeypatch)
    with pytest.raises(FetchError, match=r"npm could not find toy@9: it named no file\."):
        ask_npm("toy", "9")
    client(monkeypatch, stderr="npm error code E404\n", status=1)
    with pytest.raises(FetchError, match=r"npm could not find toy@9: npm error code E404\."):
        ask_npm("toy", "9")


def test_apt_names_the_deb(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = client(monkeypatch, "'http://x.invalid/toy_1_all.deb' toy_1_all.deb 5 SHA256:ab\n")
    assert ask_apt("toy", "1") == "http://x.invalid/toy_1_all.deb"
    assert commands == [["apt-get", "download", "--print-uris", "toy=1"]]


def test_apt_that_knows_no_such_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    client(monkeypatch, stderr="E: Unable to locate package toy\n", status=100)
    with pytest.raises(FetchError, match=r"apt-get could not find toy=1: E: Unable to locate package toy\."):
        ask_apt("toy", "1")
    client(monkeypatch, "Reading lists\n")
    with pytest.raises(FetchError, match=r"apt-get could not find toy=1: it named no file"):
        ask_apt("toy", "1")


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(command: list[str], **options: object) -> None:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(FetchError, match=r"toy@1 needs npm, which is not installed\."):
        ask_npm("toy", "1")
