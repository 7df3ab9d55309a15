"""Write ``constraints.txt``: every package danlu[dev] reaches in this environment, each pinned with ``==``.

Platform libraries that only some builds of torch need are left out; ``scripts/set_up.py`` adds them where they are.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints.txt"
HEADER = (
    "# Every package of the environment, pinned: `make setup` installs exactly these. `make lock` writes this file.\n"
)
PLATFORM_LIBRARIES = ("nvidia-", "cuda-", "triton", "pytorch-triton")


def direct_requirements() -> list[Requirement]:
    """What pyproject.toml asks for to build, run and develop danlu."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
    ]
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> set[str]:
    """Canonical names of everything ``requirements`` reach on this platform, from the installed packages."""
    reached: set[str] = set()
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements]
    visited: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in visited or name.startswith(PLATFORM_LIBRARIES):
            continue
        visited.add((name, extras))
        reached.add(name)
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return reached


def render() -> str:
    """The text of constraints.txt for this environment; a requirement's platform marker goes with its pin."""
    direct = direct_requirements()
    markers: dict[str, str] = {canonicalize_name(r.name): f" ; {r.marker}" for r in direct if r.marker is not None}
    pins = [
        f"{name}=={Version(distribution(name).version).public}{markers.get(name, '')}"
        for name in sorted(closure(direct))
    ]
    return HEADER + "\n".join(pins) + "\n"


if __name__ == "__main__":
    LOCK.write_text(render(), encoding="utf-8")
    print(f"{LOCK.name}: {render().count('==')} packages pinned")
