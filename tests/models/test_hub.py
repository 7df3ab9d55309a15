"""Hub ids without a hub: a cache folder laid out as huggingface_hub does."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import danlu
from danlu.core.errors import FetchError, ModelError, StoreError
from danlu.models import hub
from danlu.models.hub import FETCHED, fetch_model, is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of this test; nothing is ever asked of the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache: Path, folder: Path, name: str = "someone/tiny", branch: str = "main") -> Path:
    """What huggingface_hub leaves of a downloaded model: a ref, a snapshot of links, the files as blobs."""
    home = cache / ("models--" + name.replace("/", "--"))
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / branch).write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, home / "blobs" / str(number))
        (snapshot / file.name).symlink_to(home / "blobs" / str(number))
    entries = {file.name: {"size": file.stat().st_size, "blob_id": "0" * 40} for file in folder.iterdir()}
    (home / "trees").mkdir()
    (home / "trees" / f"{COMMIT}.json").write_text(json.dumps(entries))
    return snapshot


def test_a_cached_model_is_found_without_a_network(cache: Path, tiny_folder: Path) -> None:
    snapshot = cached(cache, tiny_folder)
    assert danlu.locate("someone/tiny") == snapshot
    assert fetch_model(f"someone/tiny@{COMMIT}") == snapshot
    model = danlu.load("someone/tiny")
    assert next(iter(model.generate(["The navy dress"]))).text


def test_a_branch_can_be_asked_for(cache: Path, tiny_folder: Path) -> None:
    snapshot = cached(cache, tiny_folder, branch="v2")
    assert danlu.locate("someone/tiny@v2") == snapshot
    with pytest.raises(FetchError, match=r"someone/tiny is not \(wholly\) in the cache"):
        danlu.locate("someone/tiny")


def test_a_path_comes_first(cache: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(cache, tiny_folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    assert danlu.locate("someone/tiny") == Path("someone/tiny")


def test_a_name_without_an_owner_is_looked_up_in_the_store_alone() -> None:
    with pytest.raises(StoreError, match="is called 'tiny'"):
        danlu.locate("tiny")


def test_what_is_not_cached_says_what_to_do() -> None:
    with pytest.raises(
        FetchError, match=r"someone/else is not \(wholly\) in the cache of the Hugging Face hub.*Go online once"
    ):
        danlu.locate("someone/else")


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"someone/else is neither here nor in the store.*pip install 'danlu\[hub\]'"):
        danlu.locate("someone/else")


def refusal(kind: type[errors.HfHubHTTPError], text: str = "x") -> Exception:
    return kind(text, response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: refusal(errors.RepositoryNotFoundError), r"There is no folder a/b here, no such alias, and no public"),
        (lambda: refusal(errors.GatedRepoError), r"a/b is given only to those who accepted its terms\. Accept them at"),
        (lambda: refusal(errors.RevisionNotFoundError), r"a/b has no revision 'v9'\. Leave it out"),
        (lambda: refusal(errors.HfHubHTTPError, "500 Server Error"), r"cannot be reached now: 500 Server Error"),
        (lambda: ConnectionError("no route"), r"cannot be reached now: no route"),
    ],
)
def test_what_the_hub_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], message: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FetchError, match=message):
        fetch_model("a/b@v9")


def test_only_what_a_model_is_made_of_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never code, never pickles."""
    asked: dict[str, Any] = {}

    def download(name: str, **given: Any) -> str:
        asked.update(given, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_model("a/b") == tmp_path
    files = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model",
        "merges.txt", "chat_template.jinja", "1_Pooling/config.json", "README.md", "modeling_x.py",
        "pytorch_model.bin", "flax_model.msgpack", "x.pt", "x.pkl", "onnx/model.json", "original/x.safetensors",
        "run.sh", "x.gguf",
    ]  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == files[:8]
    assert (asked["name"], asked["revision"]) == ("a/b", None)
    assert tuple(asked["allow_patterns"]) == FETCHED


@pytest.mark.parametrize("text", ["a/b", "Qwen/Qwen2.5-0.5B", "a/b@main", "a/b@refs/pr/1"])
def test_ids_are_told_from_other_words(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["a", "./a/b", "/a/b", "a/b/c", "../a", "~/a", "a/b.gguf", "a b/c", "a/", "a/x.json"])
def test_paths_and_names_are_no_ids(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises((ModelError, StoreError)):
        danlu.locate(text)


def test_the_module_is_there_before_torch(root: Path) -> None:
    assert "torch" not in Path(hub.__file__).read_text().split('"""', 2)[2]
