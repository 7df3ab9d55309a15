import json
from pathlib import Path

import pytest

from danlu.core.errors import StoreError
from danlu.core.files import sha256_json
from danlu.lineage.manifest import ID_LENGTH
from danlu.lineage.store import Store

from .conftest import Bench


def test_an_id_is_the_hash_of_kind_origin_and_files(bench: Bench) -> None:
    artifact, _ = bench.make("hello")
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256 of "hello"
    origin = {"stage": "write", "version": 1, "config": {"text": "hello"}, "seed": 17, "inputs": {}}
    files = {"text.txt": {"sha256": digest, "size": 5}}
    assert artifact.id == sha256_json({"kind": "data", "origin": origin, "files": files})[:ID_LENGTH]


def test_an_id_does_not_depend_on_the_store_or_the_time(bench: Bench, tmp_path: Path) -> None:
    assert bench.make("hello")[0].id == Bench(tmp_path / "other").make("hello")[0].id


def test_an_id_depends_on_what_the_inputs_were_made_from(bench: Bench) -> None:
    first, second = bench.make("a")[0], bench.make("a", seed=18)[0]
    children = [bench.make("child", inputs={"rows": source})[0].id for source in (first, second)]
    assert children[0] != children[1]


def test_a_prefix_finds_its_artifact(bench: Bench) -> None:
    artifact, _ = bench.make()
    assert bench.store.find(artifact.id[:6]).id == artifact.id
    assert bench.store.resolve(artifact.id[:6]).id == artifact.id


def test_an_ambiguous_prefix_lists_what_it_fits(bench: Bench) -> None:
    for name in ("abcd1", "abcd2"):
        (bench.store.root / "artifacts" / name).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"'abcd' fits 2 artifacts: abcd1, abcd2\. Give more digits\."):
        bench.store.find("abcd")


def test_an_unknown_name_suggests_the_nearest(bench: Bench) -> None:
    artifact, _ = bench.make()
    bench.store.set_alias("product-copy", artifact.id)
    with pytest.raises(StoreError, match=r"is called 'produkt-copy'\. Did you mean 'product-copy'\?"):
        bench.store.resolve("produkt-copy")


def test_an_unknown_id_is_a_store_error(bench: Bench) -> None:
    with pytest.raises(StoreError, match=r"There is no artifact 0000"):
        bench.store.get("0000")
    with pytest.raises(StoreError, match=r"No artifact id starts with '0000'"):
        bench.store.find("0000")


def test_an_alias_points_to_an_artifact_and_can_be_moved(bench: Bench) -> None:
    first, second = bench.make("a")[0], bench.make("b")[0]
    bench.store.set_alias("best", first.id)
    bench.store.set_alias("best", second.id, expected=first.id)
    assert bench.store.resolve("best").id == second.id


def test_an_alias_is_not_moved_when_it_has_moved_meanwhile(bench: Bench) -> None:
    first, second = bench.make("a")[0], bench.make("b")[0]
    bench.store.set_alias("best", first.id, expected=None)
    with pytest.raises(StoreError, match=f"Alias 'best' points to {first.id}, not {second.id}"):
        bench.store.set_alias("best", second.id, expected=second.id)


def test_an_alias_cannot_leave_its_folder(bench: Bench) -> None:
    with pytest.raises(StoreError, match=r"'\.\./x' cannot be an alias"):
        bench.store.set_alias("../x", bench.make()[0].id)


def test_verify_accepts_what_was_published(bench: Bench) -> None:
    bench.store.verify(bench.make()[0].id)


def test_verify_finds_a_changed_byte_that_sizes_do_not_show(bench: Bench) -> None:
    artifact, _ = bench.make("hello")
    (artifact.path / "text.txt").write_text("hullo")
    bench.store.get(artifact.id)
    with pytest.raises(StoreError, match=r"text\.txt has changed\. Remove .* and run the recipe again"):
        bench.store.verify(artifact.id)


def test_verify_finds_a_changed_manifest(bench: Bench) -> None:
    artifact, _ = bench.make("hello")
    path = artifact.path / "manifest.json"
    values = json.loads(path.read_text())
    values["origin"]["seed"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"The manifest of artifact .* has changed"):
        bench.store.verify(artifact.id)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "text.txt").unlink(), r"is damaged: text\.txt is missing\. Remove"),
        (lambda p: (p / "text.txt").write_text("hel"), r"is damaged: text\.txt has 3 bytes instead of 5\. Remove"),
        (lambda p: (p / "manifest.json").unlink(), r"has no manifest\.json\. Remove"),
        (lambda p: (p / "manifest.json").write_text('{"id": "3'), r"manifest of artifact \w+ is damaged"),
        (lambda p: (p / "manifest.json").write_text("[]"), r"manifest\.json is not a mapping"),
        (lambda p: (p / "manifest.json").write_text('{"idd": 1}'), r"damaged: Unknown key 'manifest\.idd'"),
    ],
)
def test_a_damaged_artifact_says_what_and_how_to_mend_it(bench: Bench, damage, message: str) -> None:
    artifact, _ = bench.make("hello")
    damage(artifact.path)
    with pytest.raises(StoreError, match=message):
        bench.store.get(artifact.id)


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.ids() == []
    assert store.aliases() == {}
    assert not store.root.exists()
