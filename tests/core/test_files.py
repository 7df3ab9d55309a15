from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ConfigError, DataError, ResourceError
from danlu.core.files import (
    atomic_folder,
    atomic_write,
    disk_errors,
    read_json,
    read_jsonl,
    sha256_file,
    sha256_json,
    write_json,
    write_jsonl,
)

# whole or absent


def test_a_written_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as handle:
        handle.write("丹炉\n")
    assert path.read_text(encoding="utf-8") == "丹炉\n"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "wb") as handle:
        handle.write(b"half of the new")
        handle.flush()
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_under_the_name_before_the_end(tmp_path: Path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as handle:
        handle.write("x")
        handle.flush()
        assert not path.exists()
    assert path.exists()


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"whole": True})
    code = (
        "import sys; from pathlib import Path; from danlu.core.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as handle:\n"
        "    handle.write('{\"half'); handle.flush(); print('written', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert read_json(path) == {"whole": True}
    write_json(path, {"again": True})
    assert read_json(path) == {"again": True}


# what the machine refuses


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; needs root, so elsewhere only the simulated full disk below is tested."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(tiny_disk: Path):
    path = tiny_disk / "rows.jsonl"
    write_jsonl(path, [{"old": 1}])
    with pytest.raises(ResourceError, match=r"The disk is full: .*rows.jsonl could not be written \(0 MB free\)"):
        write_jsonl(path, ({"text": "x" * 1000} for _ in range(200)))
    assert list(read_jsonl(path)) == [{"old": 1}]
    assert list(tiny_disk.iterdir()) == [path]


def test_a_disk_that_fills_up_says_what_to_do(tmp_path: Path):
    path = tmp_path / "not yet" / "there.bin"
    advice = r"Free space or set DANLU_HOME to a larger disk.*finished work is kept"
    with pytest.raises(ResourceError, match=advice), disk_errors(path):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_may_not_be_written_is_named(tmp_path: Path, code: int):
    path = tmp_path / "a"
    advice = r"a cannot be written: .*\. Check its permissions, or set DANLU_HOME"
    with pytest.raises(ResourceError, match=advice), disk_errors(path):
        raise OSError(code, os.strerror(code))


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be written: Not a directory"):
        write_json(tmp_path / "home" / "runs" / "a.json", {})
    with pytest.raises(ResourceError, match="cannot be written: File exists"):
        write_json(tmp_path / "home" / "a.json", {})


def test_other_system_errors_pass_through(tmp_path: Path):
    with pytest.raises(OSError, match="Input/output error"), disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


# hashes


def test_hashes_are_the_published_ones(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_the_hash_of_a_value_ignores_key_order_and_sees_every_value():
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert len({sha256_json(v) for v in ({"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"a": None}, {"b": 1})}) == 6


def test_a_value_that_is_no_json_number_has_no_hash():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json({"loss": float("nan")})


# JSON and JSON lines

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=4))
def test_rows_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path)) == rows


def test_json_keeps_chinese_readable(tmp_path: Path):
    write_json(tmp_path / "a.json", {"面料": "棉"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "面料": "棉"\n}\n'


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe{}"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json is not JSON: .*It may be damaged; make it again\."):
        read_json(path)


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_fine(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]


def test_a_line_separator_inside_text_is_no_line_end(tmp_path: Path):
    rows = [{"text": "one\u2028two\u0085three\x0bfour"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert list(read_jsonl(tmp_path / "a.jsonl")) == rows


def test_a_broken_line_is_named_with_its_number_and_beginning(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"""a\.jsonl, line 2 is not JSON: '{"a":' \(Expecting value\)\. Mend"""):
        list(read_jsonl(path))


def test_the_rows_before_a_broken_line_are_still_given(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnope\n')
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("line", ["[1]", "3", '"text"', "null"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"a\.jsonl, line 1 is .*, not an object\. One object a line\."):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_text_in_another_encoding_is_named_with_the_byte_and_a_way_out(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n{"a": "面料"}\n'.encode("gb18030"))
    with pytest.raises(DataError, match=r"line 2 is not UTF-8 \(byte 0xc3 at position 8\)\. Convert.*iconv -f gb18030"):
        list(read_jsonl(path))


def test_the_wrong_byte_is_found_after_a_byte_order_mark_too(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3"}\n')
    with pytest.raises(DataError, match=r"line 1 is not UTF-8 \(byte 0xc3 at position 8\)"):
        list(read_jsonl(path))


def test_half_an_emoji_is_refused_at_the_door(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n{"a": "cut \\ud83d"}\n')
    rows = read_jsonl(path)
    assert next(rows) == {"a": "😀"}
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 holds half a character \('\\ud83d'\)\. It was cut inside"):
        next(rows)


def test_half_an_emoji_is_not_written_either(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match=r"Row 2 for .*a\.jsonl holds half a character"):
        write_jsonl(path, [{"a": "😀"}, {"a": json.loads('"\\ude00"')}])
    assert not path.exists()


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halfway"), atomic_folder(tmp_path / "a" / "f") as folder:
        (folder / "one").write_text("1")
        raise ValueError("halfway")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "a" / "f").mkdir()  # an empty one is no hindrance
    with atomic_folder(tmp_path / "a" / "f") as folder:
        (folder / "one").write_text("1")
        assert list((tmp_path / "a" / "f").iterdir()) == []
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["f", "one"]
    with pytest.raises(ConfigError, match=r"f exists\. Give the name of a folder"), atomic_folder(tmp_path / "a" / "f"):
        pass
    with pytest.raises(ConfigError, match=r"one exists\."), atomic_folder(tmp_path / "a" / "f" / "one"):
        pass
