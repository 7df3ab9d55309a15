from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.core.errors import FetchError
from danlu.data.sources.archives import entries, extract, extract_all
from tests.data.sources.packages_on_disk import FILES, write_deb, write_npm, write_wheel

WRITERS = [write_wheel, write_npm, write_deb]
Write = Callable[..., Path]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_of_package_is_read_alike(tmp_path: Path, write: Write) -> None:
    archive = write(tmp_path / "package")
    found: dict[str, bytes] = {}
    for name, open_entry in entries(archive):
        with open_entry() as handle:
            found[name] = handle.read()
    assert found == FILES


@pytest.mark.parametrize("write", WRITERS)
def test_one_file_is_taken_out(tmp_path: Path, write: Write) -> None:
    extract(write(tmp_path / "package"), "data/b.json", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b'["two"]'


@pytest.mark.parametrize("write", WRITERS)
def test_a_pattern_takes_the_files_of_one_folder(tmp_path: Path, write: Write) -> None:
    assert extract_all(write(tmp_path / "package"), "data/*.json", tmp_path / "out") == 2
    assert sorted(p.name for p in (tmp_path / "out" / "data").iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_not_there_is_named(tmp_path: Path, write: Write) -> None:
    archive = write(tmp_path / "package")
    with pytest.raises(FetchError, match=r"package has no file 'data/d\.json'\. Did you mean 'data/\w\.json'"):
        extract(archive, "data/d.json", tmp_path / "out")
    with pytest.raises(FetchError, match=r"package has no file like '\*\.txt'\. Mend the pattern; \* stays inside"):
        extract_all(archive, "*.txt", tmp_path / "out")


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_would_leave_its_folder_is_refused(tmp_path: Path, write: Write) -> None:
    archive = write(tmp_path / "package", {"x/../../evil.json": b"x"})
    with pytest.raises(FetchError, match=r"has a file 'x/\.\./\.\./evil\.json', outside of its folder"):
        extract_all(archive, "*/*/*/*.json", tmp_path / "out")
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize("content", [b"", b"plain text", b"!<arch>\nnothing here", b"PK\3\4 broken"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FetchError, match=r"x is no wheel, tarball or Debian package: .*Mend the pin"):
        list(entries(tmp_path / "x"))
