"""The kernels are compiled once, for this machine, into a private folder; and what hinders it is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.models.native import build
from danlu.models.native.build import NotBuilt, built_library, cache_folder, compile_kernels, find_compiler
from danlu.models.native.kernels import Kernels
from tests.models.native.cases import needs_kernels


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """That of this process, with a cache of its own."""
    return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), **changes}


@needs_kernels
def test_it_is_compiled_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    library = built_library(environment(tmp_path))
    Kernels(library)
    assert library.parent == tmp_path / "danlu" / "native"
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert library.stat().st_mode & 0o077 == 0
    made = library.stat().st_mtime_ns
    assert built_library(environment(tmp_path)) == library
    assert library.stat().st_mtime_ns == made
    assert [path.name for path in library.parent.iterdir()] == [library.name]


@needs_kernels
def test_another_compiler_makes_another_library(tmp_path: Path) -> None:
    first = build._key(find_compiler(environment(tmp_path)))
    assert build._key([*find_compiler(environment(tmp_path)), "-g"]) != first


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match="DANLU_NATIVE is 0"):
        built_library(environment(tmp_path, DANLU_NATIVE="0"))


def test_without_a_compiler_it_says_which_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match=r"there is no compiler \(cc, gcc, clang\)"):
        find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(NotBuilt, match=r"there is no compiler \(my-cc\)"):
        find_compiler({"PATH": os.environ["PATH"], "CC": "my-cc -O1"})


def test_the_compiler_of_the_environment_keeps_its_arguments() -> None:
    assert find_compiler({"PATH": os.environ["PATH"], "CC": "sh -e"}) == [shutil.which("sh"), "-e"]


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'danlu.h:3: error: unknown type' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(NotBuilt, match=r"cc failed: danlu\.h:3: error: unknown type"):
        compile_kernels([str(compiler)], tmp_path / "kernels.so")
    assert [path.name for path in tmp_path.iterdir()] == ["cc"]


def test_a_compiler_that_does_not_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match="did not run"):
        compile_kernels([str(tmp_path)], tmp_path / "kernels.so")
    with pytest.raises(NotBuilt, match="did not run"):
        build._key([str(tmp_path)])


def test_a_processor_without_the_instructions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(NotBuilt, match="the processor lacks avx512f, avx512bw, avx512vl, avx512dq"):
        built_library(environment(tmp_path))


def test_another_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "system", lambda: "Darwin")
    with pytest.raises(NotBuilt, match="written for Linux, this is Darwin"):
        built_library(environment(tmp_path))


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "danlu").write_text("a file")
    with pytest.raises(NotBuilt, match="cannot be used: "):
        cache_folder(environment(tmp_path))


def test_a_cache_that_others_could_write_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "danlu" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert cache_folder(environment(tmp_path)).stat().st_mode & 0o777 == 0o700


@needs_kernels
def test_processes_that_build_at_once_all_get_a_whole_library(tmp_path: Path) -> None:
    code = "from danlu.models.native.build import built_library; print(built_library())"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    told = {process.communicate(timeout=120)[0].decode().strip() for process in started}
    assert len(told) == 1
    Kernels(Path(told.pop()))
