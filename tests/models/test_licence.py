"""A licence is read where it stands, and goes wherever the model goes."""

import shutil
from pathlib import Path

import pytest

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.models.gguf import GGUFFile
from danlu.models.gguf_write import export_gguf
from danlu.models.inspect import inspect_model
from danlu.models.licence import Licence, find_licence, licence_from_gguf, licence_to_gguf, read_licence, write_licence
from danlu.models.load import load_model
from danlu.models.rehead import NewClassifier, with_head
from danlu.models.save import save_model

CARD = "---\nlanguage: zh\nlicense: other\nlicense_name: tongyi qianwen  # 2023\nlicense_link: LICENSE\n---\n# Qwen\n"
TEXT = "Tongyi Qianwen LICENSE AGREEMENT\n\n条款 1\n"


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# license: mit\n", "apache-2.0"),
        ("README.md", "---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("README.md", "---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n", "tongyi-qianwen"),
        ("README.md", "---\nlicense: other\n---\n", "other"),
        ("README.md", "# A model\nlicense: mit\n", None),
        ("LICENSE", "                                 Apache License\n                 Version 2.0", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright", "mit"),
        ("LICENCE", "GNU LESSER GENERAL PUBLIC LICENSE", "lgpl-3.0"),
        ("README.md", '---\nlicense: "other"\nlicense_name: "Llama 2 # 7B"\n---\n', "Llama 2 # 7B"),
        ("README.md", "---\nlicense: mit # for now\nlicense_note:\n---\n", "mit"),
        ("README.md", "---\nlicense:\n---\nnone", None),
        ("LICENSE.md", "You may not.", "see LICENSE.md"),
        ("NOTICE", "MIT License was here", None),
    ],
)
def test_the_licence_is_read_where_it_stands(tmp_path: Path, file: str, content: str, found: str | None) -> None:
    (tmp_path / file).write_text(content, newline="")
    assert find_licence(tmp_path) == found


def test_the_card_comes_before_the_licence_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    (tmp_path / "LICENSE").write_text("MIT License")
    assert find_licence(tmp_path) == "gemma"


def test_a_folder_of_licences_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    assert read_licence(tmp_path) == Licence()


@pytest.fixture
def licensed(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model with a card, a licence and a notice."""
    folder = tmp_path / "licensed"
    shutil.copytree(tiny_folder, folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "LICENSE").write_text(TEXT, encoding="utf-8")
    (folder / "NOTICE.txt").write_bytes(b"\xff made by A")
    return folder


def test_a_saved_model_keeps_its_licence(licensed: Path, tmp_path: Path) -> None:
    model = load_model(licensed, precision="fp32")
    save_model(model, tmp_path / "saved")
    whole = read_licence(licensed)
    assert whole == Licence(
        identifier="other",
        name="tongyi qianwen",
        link="LICENSE",
        texts={"LICENSE": TEXT.encode(), "NOTICE.txt": b"\xff made by A"},
    )
    assert read_licence(tmp_path / "saved") == whole
    assert inspect_model(tmp_path / "saved").licence == "tongyi qianwen"


def test_a_model_with_a_new_head_keeps_its_licence(licensed: Path, tmp_path: Path) -> None:
    body = load_model(licensed, precision="fp32")
    save_model(with_head(body, NewClassifier(labels=("a", "b")), seed=0, source=licensed), tmp_path / "judge")
    assert read_licence(tmp_path / "judge") == read_licence(licensed)


def test_a_quantised_model_keeps_its_licence(licensed: Path, tmp_path: Path) -> None:
    quantize(licensed, tmp_path / "int8", QuantizeConfig())
    assert read_licence(tmp_path / "int8") == read_licence(licensed)


def test_a_licence_goes_through_gguf_and_back(licensed: Path, tmp_path: Path) -> None:
    file = export_gguf(licensed, tmp_path / "m.gguf", "f32").path
    said = GGUFFile(file).metadata
    assert (said["general.license"], said["general.license.name"]) == ("other", "tongyi qianwen")
    assert said["general.license.link"] == "LICENSE"
    assert find_licence(file) == inspect_model(file).licence == "tongyi qianwen"
    save_model(load_model(file, precision="fp32"), tmp_path / "back")
    assert read_licence(tmp_path / "back") == Licence(identifier="other", name="tongyi qianwen", link="LICENSE")
    again = export_gguf(file, tmp_path / "again.gguf", "f16")
    assert find_licence(again.path) == "tongyi qianwen"


@pytest.mark.parametrize(
    ("licence", "metadata"),
    [
        (Licence(), {}),
        (Licence(identifier="mit"), {"general.license": "mit"}),
        (Licence(identifier="other"), {"general.license": "other"}),
        (Licence(texts={"LICENSE": b"MIT License"}), {"general.license": "mit"}),
        (
            Licence(texts={"LICENSE.md": b"You may not."}),
            {"general.license": "other", "general.license.name": "see LICENSE.md"},
        ),
        (Licence(texts={"NOTICE": b"By A"}), {}),
    ],
)
def test_gguf_metadata_say_what_a_text_says(licence: Licence, metadata: dict[str, str]) -> None:
    assert licence_to_gguf(licence) == metadata
    assert licence_from_gguf(metadata).title == licence.title


@pytest.mark.parametrize("name", ["Gemma", "see LICENSE.md", "a: b", "#1", "it's", '5" disk', "许可证", "two\nlines"])
def test_a_card_can_be_read_back(tmp_path: Path, name: str) -> None:
    write_licence(Licence(identifier="other", name=name), tmp_path)
    assert read_licence(tmp_path).name == name.replace('"', "'").replace("\n", " ")


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    write_licence(Licence(identifier="mit", texts={"LICENSE": b"MIT License"}), tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert find_licence(tmp_path) == "mit"


def test_a_model_of_which_nothing_is_said_gets_no_card(tiny_folder: Path, tmp_path: Path) -> None:
    save_model(load_model(tiny_folder, precision="fp32"), tmp_path / "saved")
    assert not (tmp_path / "saved" / "README.md").exists()
