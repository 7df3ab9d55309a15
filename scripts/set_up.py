"""Make ``.venv`` with the locked dependencies, or do nothing when it is current: what ``make setup`` runs.

Standard library only, because it runs before anything is installed. Knows nothing of danlu itself.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up-of"
OLDEST = (3, 11)


def state_key() -> str:
    """Changes when the environment must be made again: lock, project file, this script or the folder changed."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "constraints.txt", ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def version_problem(version: tuple[int, int]) -> str | None:
    """What to tell the user when this Python is too old, or None when it will do."""
    if version >= OLDEST:
        return None
    others = [f"python3.{minor}" for minor in range(OLDEST[1], 20) if runs(f"python3.{minor}", "--version")]
    advice = f"Run: make setup PYTHON={others[0]}" if others else "Install one, then: make setup PYTHON=/path/to/it"
    return f"Python {version[0]}.{version[1]} is too old; danlu needs {OLDEST[0]}.{OLDEST[1]} or newer. {advice}"


def say(text: str) -> None:
    """One line for the person."""
    print(f"setup: {text}", flush=True)


def runs(*command: str | Path) -> bool:
    """Whether a command exists and exits with 0."""
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def pip(*arguments: str) -> int:
    """Run the environment's pip: with its progress bars on a terminal, quiet but for problems elsewhere."""
    quiet = () if sys.stdout.isatty() else ("--quiet", "--progress-bar", "off")
    command = [PYTHON, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", *quiet]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}).returncode


def make_venv() -> str | None:
    """Create ``.venv``; returns what to tell the user when this Python cannot."""
    if not runs(sys.executable, "-c", "import ensurepip, venv"):
        return (
            "this Python cannot make virtual environments (Debian and Ubuntu package that apart). "
            f"Run: apt-get install python3.{sys.version_info[1]}-venv"
        )
    say(f"making .venv with Python {sys.version_info[0]}.{sys.version_info[1]}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV])
    return None if done.returncode == 0 else "making .venv failed; the lines above say why"


def install() -> str | None:
    """Install the lock and danlu itself; returns what to tell the user when that fails."""
    retry = "its lines above say why. Check the network and the disk, then run the same command again"
    say("installing the locked dependencies (constraints.txt)")
    if pip("install", "--no-deps", "--no-compile", "-r", "constraints.txt"):
        return f"pip could not install the lock: {retry}"
    say("installing danlu")
    if pip("install", "--no-deps", "--no-build-isolation", "-e", "."):
        return f"pip could not install danlu: {retry}"
    if not runs(PYTHON, "-m", "pip", "check"):
        say("this platform's builds need more than the lock names (for CUDA, for example); installing that too")
        if pip("install", "--no-build-isolation", "-c", "constraints.txt", "-e", ".[dev]"):
            return f"pip could not complete the environment: {retry}"
    return None


def main() -> int:
    """Bring ``.venv`` up to date; the exit status is 0 when it is usable."""
    problem = version_problem(sys.version_info[:2])
    if problem is None and STAMP.is_file() and STAMP.read_text() == state_key() and PYTHON.exists():
        return 0
    started = time.monotonic()
    if problem is None and not runs(PYTHON, "-m", "pip", "--version"):
        problem = make_venv()
    if problem is None:
        STAMP.unlink(missing_ok=True)
        problem = install()
    if problem is not None:
        say(problem)
        return 1
    STAMP.write_text(state_key())
    say(f"ready in {time.monotonic() - started:.0f} s: .venv/bin/danlu")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        sys.exit(130)
