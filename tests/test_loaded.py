"""The facade's models and engines."""

import subprocess
import sys
from pathlib import Path

import pytest

import danlu
from danlu.core.records import GenerateOptions
from danlu.loaded import Loaded, short_name
from danlu.serve.engine.config import EngineConfig
from tests.tiny import write_tiny

GREEDY = GenerateOptions(max_tokens=6, ignore_eos=True)
SMALL = EngineConfig(cache_tokens=1024, max_rows=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "navy")


def test_a_loaded_model_has_an_engine_that_answers_as_it_does(folder: Path) -> None:
    model = danlu.load(folder, precision="fp32")
    assert isinstance(model, Loaded)
    expected = model.generate(["a navy dress"], GREEDY)[0].token_ids
    with model.engine(SMALL) as engine:
        assert [served.name for served in engine.models()] == ["navy"]
        assert engine.generate(["a navy dress"], GREEDY)[0].token_ids == expected
    assert model.generate(["a navy dress"], GREEDY)[0].token_ids == expected, "its weights are still there"


def test_an_engine_is_made_of_names_and_places(folder: Path) -> None:
    with danlu.engine(folder, precision="fp32", config=SMALL) as engine:
        assert [served.name for served in engine.models()] == ["navy"]
        answer = engine.generate(["a navy dress"], GREEDY)[0]
    with danlu.engine({"one": folder, "two": str(folder)}, precision="fp32", config=SMALL) as engine:
        assert [served.name for served in engine.models()] == ["one", "two"]
        assert engine.generate(["a navy dress"], GREEDY)[0] == answer


def test_models_are_called_by_the_last_part_of_their_names() -> None:
    names = ["product-copy", "./models/llama.gguf", "owner/name", "owner/name@v2", Path("/x/y/")]
    assert [short_name(name) for name in names] == ["product-copy", "llama", "name", "name", "y"]


def test_loading_a_model_loads_no_engine(folder: Path) -> None:
    code = (
        f"import sys, danlu; danlu.load({str(folder)!r}); "
        "sys.exit('danlu.serve.engine.engine' in sys.modules or 'danlu.serve' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
