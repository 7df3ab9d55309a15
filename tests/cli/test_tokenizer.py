import json
from pathlib import Path

import pytest

from danlu.cli.main import main
from tests.tiny import shop_rows


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "shop.txt"
    chinese = [f"第{i}件连衣裙面料柔软，颜色很好看，适合通勤。" for i in range(200)]
    path.write_text("\n\n".join([*(str(row["Review Text"]) or "x" for row in shop_rows(200)), *chinese]))
    return path


def test_a_tokenizer_is_trained_and_compared(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, size in ((small, "300"), (large, "450")):
        options = ["--out", str(folder), "--vocabulary-size", size, "--held-out", "0.1"]
        assert main(["tokenizer", "train", str(text), *options]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith(f"{folder}: {size} tokens from ")
        assert [line.split(":")[0] for line in out[1:]] == ["en", "zh"]
    assert json.loads((large / "tokenizer_report.json").read_text())["config"]["vocabulary_size"] == 450
    assert main(["tokenizer", "compare", str(large), str(small / "tokenizer.json"), str(text)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["characters", "en", "zh"]
    assert all(float(row[3]) > 1 for row in rows[1:])


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "compare", str(tmp_path / "no"), str(tmp_path), str(tmp_path / "x.txt")]) == 1
    assert "There is no file" in capsys.readouterr().err
    (tmp_path / "x.txt").write_text("x")
    assert main(["tokenizer", "compare", str(tmp_path / "no"), str(tmp_path), str(tmp_path / "x.txt")]) == 1
    assert "Give a folder with a tokenizer, or a tokenizer.json." in capsys.readouterr().err
