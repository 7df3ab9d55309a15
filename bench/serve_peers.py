"""What bench/serve.py measures against, set up under .bench/serve: nothing happens where it is current.

    python bench/serve_peers.py

Two environments with pinned packages (infinity asks for older ones than the rest), and llama.cpp compiled for this
processor from the source that llama-cpp-python's distribution holds; its build takes some ten minutes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench" / "serve"
PYTHON = FOLDER / "venv" / "bin" / "python"
INFINITY = FOLDER / "infinity" / "bin" / "infinity_emb"
LLAMA_SERVER = FOLDER / "llama.cpp" / "bin" / "llama-server"
LLAMA_PERPLEXITY = FOLDER / "llama.cpp" / "bin" / "llama-perplexity"
LLAMA = "llama_cpp_python-0.3.36"
LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)  # fmt: skip
ENVIRONMENTS = {"venv": "serve_requirements.txt", "infinity": "serve_infinity_requirements.txt"}
PEERS = ("torch", "transformers", "sentence-transformers", "ctranslate2", "xllamacpp")


def set_up() -> None:
    """Make what is missing; ends the program with what to do when that fails."""
    for name, lock in ENVIRONMENTS.items():
        _environment(FOLDER / name, ROOT / "bench" / lock)
    _llama(FOLDER / "llama.cpp")


def versions() -> dict[str, str]:
    """What is measured against."""
    code = f"from importlib.metadata import version\nfor name in {PEERS!r}: print(name, version(name))"
    found = dict(line.split() for line in _read([str(PYTHON), "-c", code]).splitlines())
    infinity = "from importlib.metadata import version; print(version('infinity_emb'))"
    found["infinity-emb"] = _read([str(INFINITY.with_name("python")), "-c", infinity]).strip()
    found["llama.cpp"] = f"of {LLAMA}, built here with {' '.join(LLAMA_OPTIONS)}"
    return found


def _environment(folder: Path, lock: Path) -> None:
    stamp, key = folder / "set-up-of", hashlib.sha256(lock.read_bytes()).hexdigest()
    if _says(stamp, key):
        return
    stamp.unlink(missing_ok=True)
    print(f"making {folder.relative_to(ROOT)} with the peers of {lock.name} (once, some minutes)", file=sys.stderr)
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--progress-bar", "off", "-r", str(lock)])
    stamp.write_text(key, encoding="utf-8")


def _llama(build: Path) -> None:
    stamp, key = build / "set-up-of", " ".join((LLAMA, *LLAMA_OPTIONS))
    if _says(stamp, key):
        return
    stamp.unlink(missing_ok=True)
    print("building llama.cpp from source (once, some ten minutes)", file=sys.stderr)
    source = FOLDER / LLAMA / "vendor" / "llama.cpp"
    if not source.is_dir():
        name, _, release = LLAMA.rpartition("-")
        download = ["download", "--quiet", "--no-deps", "--no-binary", name, f"{name}=={release}", "-d", str(FOLDER)]
        _run([str(PYTHON), "-m", "pip", *download])
        with tarfile.open(FOLDER / f"{LLAMA}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    cmake = str(PYTHON.with_name("cmake"))
    _run([cmake, "-S", str(source), "-B", str(build), *LLAMA_OPTIONS])
    _run([cmake, "--build", str(build), "--target", "llama-server", "llama-perplexity", "-j", "2"])
    stamp.write_text(key, encoding="utf-8")


def _says(stamp: Path, key: str) -> bool:
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == key


def _read(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(
            f"{' '.join(command)} failed; the lines above say why. The peers come from the package index, and "
            "llama.cpp needs a C++ compiler: check both, then run the same command again."
        )


if __name__ == "__main__":
    set_up()
    print(FOLDER)
