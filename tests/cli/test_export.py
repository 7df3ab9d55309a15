from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.models.gguf import GGUFFile


def test_a_folder_becomes_one_file(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    assert main(["export", str(tiny_folder), "--out", str(out), "--licence", "mit"]) == 0
    assert capsys.readouterr().out == f"{out}: 0.0 MB, 20 tensors (5 F32, 15 Q8_0)\n"
    said = GGUFFile(out).metadata
    assert (said["general.name"], said["general.license"]) == (tiny_folder.stem, "mit")
    assert main(["inspect", str(out)]) == 0
    assert "mit" in capsys.readouterr().out


def test_a_file_that_is_there_is_kept(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("mine")
    command = ["export", str(tiny_folder), "--out", str(out), "--type", "f16"]
    assert main(command) == 1
    assert "m.gguf exists. Give another --out, or --force to write over it." in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert GGUFFile(out).form("token_embd.weight") == "F16"


def test_the_card_says_the_licence(tiny_folder: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "m").mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert main(["export", str(folder), "--out", str(tmp_path / "m.gguf")]) == 0
    assert GGUFFile(tmp_path / "m.gguf").metadata["general.license"] == "apache-2.0"


def test_a_form_that_is_not_offered_is_wrong_usage(tiny_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(tiny_folder), "--out", str(tmp_path / "m.gguf"), "--type", "q3"]) == 2
