"""Compiles the kernels for this very processor, once, into the user's cache. Knows compilers and no networks.

A library's name is the hash of its sources, flags, compiler and processor, so that a cache that several machines share
holds one for each. It is written under another name and renamed: processes that build at once do not meet.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from danlu.core.device import cpu_flags

SOURCES = Path(__file__).parent
FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread",
)  # fmt: skip
NEEDED_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
"""Instruction sets without which the kernels do not run; others they use where the processor has them."""
COMPILERS = ("cc", "gcc", "clang")
_MOST_SECONDS = 120


class NotBuilt(Exception):
    """Why there is no library; the text is for a log."""


def built_library(environment: Mapping[str, str] = os.environ) -> Path:
    """The compiled kernels, from the cache or made now.

    DANLU_NATIVE=0 turns them off, CC names a compiler, XDG_CACHE_HOME says where caches are. Raises NotBuilt.
    """
    if environment.get("DANLU_NATIVE") == "0":
        raise NotBuilt("DANLU_NATIVE is 0")
    if platform.system() != "Linux":
        raise NotBuilt(f"they are written for Linux, this is {platform.system()}")
    if missing := [flag for flag in NEEDED_FLAGS if flag not in cpu_flags()]:
        raise NotBuilt(f"the processor lacks {', '.join(missing)}")
    command = find_compiler(environment)
    folder = cache_folder(environment)
    library = folder / f"kernels-{_key(command)}.so"
    if not library.is_file():
        compile_kernels(command, library)
    return library


def find_compiler(environment: Mapping[str, str] = os.environ) -> list[str]:
    """$CC with its arguments, or the first compiler there is. Raises NotBuilt."""
    wanted = environment.get("CC", "").split()
    names = [wanted[0]] if wanted else COMPILERS
    for name in names:
        found = shutil.which(name, path=environment.get("PATH"))
        if found is not None:
            return [found, *wanted[1:]]
    raise NotBuilt(f"there is no compiler ({', '.join(names)})")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where libraries are kept, readable by their owner alone. Raises NotBuilt."""
    home = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or Path.home()) / ".cache"
    folder = Path(home) / "danlu" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.getuid():
            raise NotBuilt(f"{folder} belongs to somebody else")
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise NotBuilt(f"{folder} cannot be used: {error.strerror}") from error
    return folder


def compile_kernels(command: Sequence[str], library: Path, flags: Sequence[str] = FLAGS) -> None:
    """Compile all sources into ``library``, which appears whole or not at all. Raises NotBuilt."""
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                [*command, *flags, "-o", str(made), *sources, "-lm"],
                capture_output=True, text=True, errors="replace", timeout=_MOST_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotBuilt(f"{command[0]} did not run: {error}") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
            raise NotBuilt(f"{command[0]} failed: {first.strip()}")
        made.chmod(0o700)
        os.replace(made, library)


def _key(command: Sequence[str]) -> str:
    """What a library depends on."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    try:
        version = subprocess.run(
            [*command, "--version"], capture_output=True, timeout=_MOST_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{command[0]} did not run: {error}") from error
    for part in (*command, *FLAGS, *sorted(cpu_flags()), _processor()):
        digest.update(part.encode() + b"\0")
    digest.update(version)
    return digest.hexdigest()[:24]


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself: -march=native also tunes for it."""
    names = ("vendor_id", "cpu family", "model", "model name", "stepping")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in names)
