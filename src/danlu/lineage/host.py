"""Facts about the machine and the code, kept with every artifact. Imports nothing heavy."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from danlu.lineage.manifest import Code


@functools.cache
def code_version() -> Code:
    """Package version, and the git commit when the package lies in a checkout."""
    version = metadata.version("danlu")
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return Code(version=version)
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return Code(version=version, commit=commit or None, dirty=bool(status))


def _git(root: Path, *arguments: str) -> str:
    """What git prints, or "" where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def _fixed_facts() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    try:
        facts["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        facts["torch"] = None
    return facts


def host_facts() -> dict[str, Any]:
    """Processor, cores, platform, versions."""
    return dict(_fixed_facts())


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
