"""The peers' environment: .bench/train/venv with pinned Transformers, PEFT, TRL and litgpt; nothing when it is current.

    python bench/train_peers.py

litgpt asks for an older huggingface-hub than Transformers does; it runs with the newer one, so everything is installed
without resolving (bench/train_requirements.txt pins every package).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".bench" / "train" / "venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "bench" / "train_requirements.txt"
PEERS = ("torch", "transformers", "peft", "accelerate", "trl", "litgpt", "lightning")


def set_up() -> Path:
    """The environment's Python; ends the program with what to do when it cannot be made."""
    stamp = VENV / "set-up-of"
    key = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if PYTHON.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        return PYTHON
    stamp.unlink(missing_ok=True)
    print("making .bench/train/venv with the peers (once, some minutes)", file=sys.stderr)
    if not PYTHON.exists():
        _run([sys.executable, "-m", "venv", str(VENV)])
    _run([str(PYTHON), "-m", "pip", "install", "--quiet", "--no-deps", "--progress-bar", "off", "-r", str(LOCK)])
    _run([str(PYTHON), "-c", "import litgpt.pretrain, peft, trl"])
    stamp.write_text(key, encoding="utf-8")
    return PYTHON


def versions() -> dict[str, str]:
    """What the peers' environment holds."""
    code = f"from importlib.metadata import version\nfor name in {PEERS!r}: print(name, version(name))"
    done = subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(
            f"{' '.join(command)} failed; the lines above say why. The peers come from the package index: check the "
            "network, then run the same command again."
        )


if __name__ == "__main__":
    print(set_up())
