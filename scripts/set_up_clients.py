"""Make the environments of other people's clients that tests/clients runs against a server, or do nothing when they are
current: what ``make test`` runs after ``make setup``.

Each ``tests/clients/NAME.txt`` pins one: they need packages, and versions of ``openai``, that do not go with ours.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tests" / "clients"


def folder_of(pins: Path) -> Path:
    """Where the environment of a file of pins lies."""
    return Path(sys.prefix) / f"clients-{pins.stem}"


def state_key(pins: Path) -> str:
    """Changes when the environment must be made again."""
    return hashlib.sha256(pins.read_bytes() + sys.version.encode() + sys.prefix.encode()).hexdigest()


def make(pins: Path) -> bool:
    """Bring one environment up to date; whether it is usable."""
    folder = folder_of(pins)
    stamp = folder / "set-up-of"
    if stamp.is_file() and stamp.read_text() == state_key(pins):
        return True
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    venv.create(folder, clear=True, symlinks=True, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--no-input", "install", "--quiet"]
    command += ["--no-deps", "--no-compile", "--disable-pip-version-check", "-r", pins]
    if subprocess.run(command, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}).returncode:
        print(f"setup: pip could not install {pins.relative_to(ROOT)}: its lines above say why.", flush=True)
        return False
    stamp.write_text(state_key(pins))
    print(f"setup: {folder.name} ready in {time.monotonic() - started:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    usable = [make(pins) for pins in sorted(PINS.glob("*.txt"))]
    sys.exit(0 if all(usable) else 1)
