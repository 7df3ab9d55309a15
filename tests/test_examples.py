"""Every file in examples/ runs as its docstring says, on the tiny model, and stays short."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from transformers import BertForMaskedLM, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import danlu
from danlu.core.files import write_jsonl
from tests.models.encoders import save_encoder
from tests.tiny import shop_rows, write_shop

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]
Run = Callable[..., str]
RECIPE = """
name: tiny
stages:
  - {{name: weights, use: fetch, path: {model}}}
  - {{name: base, use: convert, inputs: {{weights: weights}}}}
aliases: {{product-copy: base}}
"""


@pytest.fixture
def run(
    root: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run one example in a folder of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def go(name: str, *arguments: str | Path) -> str:
        path = root / "examples" / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return go


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Conversations in the form that training and evaluation read."""
    path = tmp_path / "rows.jsonl"
    made = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"Write product copy.\nTitle: {row['Title']}"},
                {"role": "assistant", "content": f"The {row['Title']} is soft and lined."},
            ],
            "attributes": {"material": ["soft", "lined"]},
        }
        for i, row in enumerate(shop_rows(12))
    ]
    write_jsonl(path, made)
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny_folder))
    return path


def test_run_a_recipe_and_trace_lineage(run: Run, recipe: Path) -> None:
    assert [line.split()[:2] for line in run("run_a_recipe.py", recipe).splitlines()] == [
        ["weights", "made"],
        ["base", "made"],
    ]
    assert run("run_a_recipe.py", recipe, "seed=3").count("reused") == 2
    lines = run("trace_lineage.py").splitlines()
    assert [line.split()[0] for line in lines] == ["base", "weights"]
    assert lines[1].startswith("  weights (source ")


def test_load_and_generate(run: Run, recipe: Path, tiny_folder: Path) -> None:
    text = run("load_and_generate.py", tiny_folder)
    assert text.startswith("chat:")
    assert text.count("log-probability -") == 2
    danlu.run(recipe)
    assert run("load_and_generate.py") == text  # the alias names the same model


def test_serve_and_call(run: Run, tiny_folder: Path) -> None:
    lines = run("serve_and_call.py", tiny_folder)
    assert re.findall(r"(?m)^(\w+) dress: ", lines) == ["Navy", "Black", "White", "Green"]


def test_clean_and_mask(run: Run, tmp_path: Path) -> None:
    text = run("clean_and_mask.py")
    assert "Mail me at [EMAIL] or call [PHONE]" in text
    assert "请发邮件到 [EMAIL] 联系我" in text
    assert re.findall(r"dropped (\d): (\w+)", text) == [("3", "too_short"), ("1", "duplicate")]
    text = run("clean_and_mask.py", write_shop(tmp_path / "shop.csv", 60), "Review Text")
    assert "a@b.com" not in text
    assert text.count("Mail [EMAIL].") == text.count("kept ")


def test_fine_tune(run: Run, tiny_folder: Path, rows: Path) -> None:
    text = run("fine_tune.py", tiny_folder, rows, "adapter", 3)
    assert re.fullmatch(r"loss \d+\.\d+ → \d+\.\d+, \d+\.\d+% trained\n", text)
    assert Path("adapter/adapter_model.safetensors").is_file()


def test_evaluate_and_compare(run: Run, tiny_folder: Path, rows: Path) -> None:
    text = run("evaluate_and_compare.py", tiny_folder, rows, "out")
    assert re.match(r"size ratio 0\.[34]\d\d\nplain: BLEU-4 .* items/s\nsmall: BLEU-4 .* items/s\nbleu4: ", text)
    assert text.count("p(lower)") == 4


def test_classify_image(run: Run, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (30, 20), (200, 120, 40)).save(photo)
    labels = {"id2label": {"0": "cat", "1": "dog", "2": "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, **labels)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    text = run("classify_image.py", tmp_path / "vit", photo)
    assert sorted(re.findall(r"(?m)^ *\d+\.\d%  (\w+)$", text)) == ["cat", "dog", "owl"]


def test_classic_attention(run: Run) -> None:
    lines = run("classic_attention.py").splitlines()
    assert len(lines) == 4
    assert all(line.endswith("equal torch's") for line in lines)


def test_classic_encoder(run: Run) -> None:
    assert run("classic_encoder.py").startswith(
        "2 layers: hidden states (3, 11, 32) equal torch's\nposition 10: -0.544, "
    )


@pytest.mark.model
def test_embed_and_search(run: Run, minilm: Path) -> None:
    lines = run("embed_and_search.py", minilm, "how do I return an order?", "what is it made of?").splitlines()
    assert re.fullmatch(r"  0\.\d\d  Send the parcel back .*", lines[1])
    assert re.fullmatch(r"  0\.\d\d  The lining is recycled .*", lines[4])


@pytest.mark.model
def test_classify_text(run: Run, minilm: Path) -> None:
    texts = ["The zip broke on the first day.", "Do you have it in red?", "Beautiful coat, so warm"]
    lines = run("classify_text.py", minilm, *texts)
    assert re.findall(r"0\.\d\d (\w+): ", lines) == ["complaint", "question", "praise"]


def test_train_tokenizer(run: Run, tmp_path: Path) -> None:
    lines = run("train_tokenizer.py", "own").splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["en", "zh"]
    assert "back as it was: True" in lines[2]
    assert lines[3] == "what a user types is text: True"
    (tmp_path / "more.txt").write_text("\n\n".join(str(row["Review Text"]) for row in shop_rows(200)))
    assert run("train_tokenizer.py", "other", "300", "more.txt").startswith("en: ")
    assert Path("other/tokenizer.json").is_file()


def test_train_classifier(run: Run, tmp_path: Path) -> None:
    save_encoder(tmp_path / "bert", BertForMaskedLM)
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"the {w} sat", "label": w} for w in ("cat", "dog") * 15])
    lines = run("train_classifier.py", "bert", "rows.jsonl", "out", "a cat sat").splitlines()
    assert lines[0].startswith("loss ")
    assert "validation_loss" in lines[-2]
    assert re.fullmatch(r"0\.\d\d (cat|dog): a cat sat", lines[-1])
    assert Path("out/model.safetensors").is_file()


def test_train_embedder(run: Run, tmp_path: Path) -> None:
    save_encoder(tmp_path / "bert", BertForMaskedLM)
    write_jsonl(tmp_path / "rows.jsonl", [{"query": f"a {w}", "positive": f"the {w} sat"} for w in ("cat", "dog") * 9])
    lines = run("train_embedder.py", "bert", "rows.jsonl", "out").splitlines()
    assert [line.split(":")[0] for line in lines] == ["loss", "recall_at_1", "recall_at_10", "mrr"]
    assert Path("out/modules.json").is_file()


def test_every_example_is_run_here_short_and_says_how_to_run_it(root: Path) -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    examples = sorted((root / "examples").glob("*.py"))
    assert len(examples) >= 7
    for path in examples:
        text = path.read_text(encoding="utf-8")
        assert f'"{path.name}"' in tests, f"{path.name} has no test"
        assert len(text.splitlines()) <= 40, f"{path.name} is too long to be read at a glance"
        assert f"python examples/{path.name}" in text.split('"""')[1]
