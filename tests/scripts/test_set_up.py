from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import set_up


def project(folder: Path) -> Path:
    """A copy of what set-up reads, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        (folder / name).write_text((set_up.ROOT / name).read_text())
    (folder / "scripts").mkdir()
    (folder / "scripts" / "set_up.py").write_text(Path(set_up.__file__).read_text())
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_an_old_python_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(set_up, "runs", lambda *command: command[0] == "python3.12")
    assert set_up.version_problem((3, 9)) == (
        "Python 3.9 is too old; danlu needs 3.11 or newer. Run: make setup PYTHON=python3.12"
    )
    monkeypatch.setattr(set_up, "runs", lambda *command: False)
    assert "Install one, then: make setup PYTHON=/path/to/it" in (set_up.version_problem((3, 10)) or "")
    assert set_up.version_problem((3, 11)) is None
    assert set_up.version_problem((3, 13)) is None


def test_set_up_itself_runs_on_an_old_python_far_enough_to_say_so():
    source = Path(set_up.__file__).read_text()
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source


def test_a_missing_python_is_named(tmp_path: Path):
    done = make(project(tmp_path / "p"), "setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "setup: 'no-such-python' was not found. Install Python 3.11 or newer" in done.stdout


def test_a_python_without_venv_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(set_up, "runs", lambda *command: False)
    problem = set_up.make_venv() or ""
    assert "this Python cannot make virtual environments" in problem
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in problem


def test_a_current_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(set_up, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(set_up, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(set_up, "install", lambda: pytest.fail("installed again"))
    (tmp_path / "stamp").write_text(set_up.state_key())
    assert set_up.main() == 0


def test_a_changed_lock_installs_again_and_a_failure_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stamp = tmp_path / "stamp"
    monkeypatch.setattr(set_up, "STAMP", stamp)
    monkeypatch.setattr(set_up, "PYTHON", Path(sys.executable))
    stamp.write_text("of another lock")
    monkeypatch.setattr(set_up, "install", lambda: "pip could not install the lock")
    assert set_up.main() == 1
    assert not stamp.exists()
    assert "setup: pip could not install the lock" in capsys.readouterr().out
    monkeypatch.setattr(set_up, "install", lambda: None)
    assert set_up.main() == 0
    assert stamp.read_text() == set_up.state_key()
    assert "setup: ready in" in capsys.readouterr().out


def test_make_alone_prints_every_target_with_its_help():
    done = make(set_up.ROOT)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"setup", "quickstart", "test", "lint", "types", "format", "check", "clean"} <= listed
    assert all(len(line.split()) > 2 for line in done.stdout.splitlines())
