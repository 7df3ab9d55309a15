"""Packages of every form for tests, with the same files inside."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

FILES: Mapping[str, bytes] = {
    "data/a.json": b'["one"]',
    "data/b.json": b'["two"]',
    "data/deep/c.json": b'["three"]',
    "readme": b"hello",
}


def write_wheel(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_npm(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    path.write_bytes(_tar({f"package/{name}": content for name, content in files.items()}, "w:gz"))
    return path


def write_deb(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    data = lzma.compress(_tar({f"./{name}": content for name, content in files.items()}, "w"))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}
    content = b"!<arch>\n"
    for name, part in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode()
        content += part + b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return path


def _tar(files: Mapping[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
