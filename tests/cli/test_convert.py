import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import danlu
from danlu.cli.main import main
from danlu.models.gguf_write import export_gguf
from danlu.models.vision import ImageModel
from tests.models.resnet_peer import resnet_state


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    save_file(resnet_state("basic"), tmp_path / "resnet.safetensors")
    return tmp_path / "resnet.safetensors"


@pytest.mark.usefixtures("one_thread")
def test_a_file_of_torchvision_becomes_a_model_with_labels(
    resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = tmp_path / "model", tmp_path / "labels.txt"
    labels.write_text("cat\n dog \n猫头鹰\n\n", encoding="utf-8")
    command = ["convert", str(resnet), "--out", str(out), "--labels", str(labels), "--licence", "bsd-3-clause"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}: resnet, 0.0M parameters, 0.1 MB\n"
    model = danlu.load(out)
    assert isinstance(model, ImageModel)
    (found,) = model.classify([Image.new("RGB", (64, 48), "red")])
    assert found.keys() == {"cat", "dog", "猫头鹰"}
    assert main(["inspect", str(out)]) == 0
    assert "bsd-3-clause" in capsys.readouterr().out
    assert main(command) == 1
    assert "model exists. Give the name of a folder that is not there yet, or is empty." in capsys.readouterr().err


def test_a_gguf_file_becomes_a_folder_that_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    file = export_gguf(tiny_folder, tmp_path / "m.gguf", "f32", licence="mit").path
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    one, other = (danlu.load(path, precision="fp32") for path in (file, tmp_path / "model"))
    assert not isinstance(one, ImageModel)
    assert not isinstance(other, ImageModel)
    prompts = ["Title: linen", "衣服"]
    assert one.generate(prompts) == other.generate(prompts)
    assert other.model.licence.title == "mit"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (["cat", "dog", "owl"], ["cat", "dog", "owl"]),
        ({"0": "cat", "1": "dog", "2": "owl"}, ["cat", "dog", "owl"]),
        ({"2": "owl", "0": "cat", "1": "dog"}, ["cat", "dog", "owl"]),
    ],
)
def test_labels_may_be_json(resnet: Path, tmp_path: Path, content: object, found: list[str]) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = str(tmp_path / "labels.json")
    assert main(["convert", str(resnet), "--out", str(tmp_path / "model"), "--labels", labels]) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == found


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.txt", "cat\n\nowl\n", "labels.txt: class 1 is called ''. Give each class a name."),
        ("labels.json", "[1, 2, 3]", "labels.json: class 0 is called 1. Give each class a name."),
        ("labels.json", '{"1": "cat"}', "is neither a list of names nor an object of number and name. Number classes"),
        ("labels.txt", "cat\n", "1 labels were given for 3 classes. Give one for each class, in order."),
        ("gone.txt", None, "gone.txt. Give a file with the name of a class on each line."),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    assert main(["convert", str(resnet), "--out", str(tmp_path / "m"), "--labels", str(tmp_path / file)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_source_that_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "m")]) == 1
    assert "is a folder. Give one file; a model folder needs no conversion." in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "gone.pth"), "--out", str(tmp_path / "m")]) == 1
    assert "gone.pth. Give a .gguf, .pth or .safetensors file." in capsys.readouterr().err
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    labels = ["--labels", str(tmp_path / "l.txt")]
    assert main(["convert", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "m"), *labels]) == 1
    assert "--labels are given, but a GGUF file is no classifier. Leave them out." in capsys.readouterr().err
