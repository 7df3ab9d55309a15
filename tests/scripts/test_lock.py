from __future__ import annotations

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import LOCK, closure, direct_requirements


def pins() -> dict[str, Requirement]:
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_every_package_that_is_needed_is_pinned_and_no_other():
    assert set(pins()) == closure(direct_requirements())


def test_every_pin_is_one_exact_version_without_a_local_suffix():
    for requirement in pins().values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version
        assert "*" not in specifier.version


def test_every_pin_is_what_pyproject_allows():
    locked = pins()
    for requirement in direct_requirements():
        (specifier,) = locked[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(specifier.version), requirement


def test_what_not_every_platform_has_keeps_its_marker():
    assert str(pins()["uvloop"].marker) == 'sys_platform != "win32"'
