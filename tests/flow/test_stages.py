import hashlib
import json
from pathlib import Path

import pytest

import danlu
from danlu.core.errors import ConfigError, FetchError, ScriptError
from danlu.flow.run import RunResult
from danlu.flow.stages.fetch import FetchConfig


def run(tmp_path: Path, stage: str, *overrides: str) -> RunResult:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nstages:\n  - {stage}\n")
    return danlu.run(recipe, *overrides, store=tmp_path / "home")


def test_a_local_file_is_fetched_with_its_hash_and_again_when_it_changes(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,b\n")
    artifact = run(tmp_path, f"{{name: rows, use: fetch, path: {source}}}").artifacts["rows"]
    assert (artifact.path / "rows.csv").read_text() == "a,b\n"
    assert artifact.manifest.origin.config["sha256"] == hashlib.sha256(b"a,b\n").hexdigest()
    assert run(tmp_path, f"{{name: rows, use: fetch, path: {source}}}").reused == {"rows"}
    source.write_text("a,b\n1,2\n")
    assert not run(tmp_path, f"{{name: rows, use: fetch, path: {source}}}").reused


def test_a_local_folder_is_fetched_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "x").write_text("x")
    artifact = run(tmp_path, f"{{name: m, use: fetch, path: {folder}}}").artifacts["m"]
    assert sorted(artifact.manifest.files) == ["config.json", "sub/x"]


def test_a_local_file_that_is_missing_or_not_the_pinned_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"nothere does not exist \(from .*\)\. Mend path"):
        run(tmp_path, "{name: rows, use: fetch, path: nothere}")
    source = tmp_path / "rows.csv"
    source.write_text("a")
    with pytest.raises(FetchError, match=rf"rows\.csv has sha256 ca97\w+, not the pinned {'0' * 64}\. Get the right"):
        run(tmp_path, f"{{name: rows, use: fetch, path: {source}, sha256: '{'0' * 64}'}}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"package, version, member, sha256 not given\. Give package"),
        ({"package": "p", "version": "1", "member": "m"}, r"sha256 not given"),
        ({"path": Path("x"), "package": "p"}, r"path and package are both given"),
        ({"path": Path("x"), "sha256": "ABC"}, r"sha256 is 'ABC'\. Give 64 lower-case hex digits"),
        ({"path": Path("x"), "filename": "../x"}, r"filename is '\.\./x'\. Give a plain file name"),
    ],
)
def test_a_fetch_that_cannot_be_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FetchConfig(**values)  # pyright: ignore[reportArgumentType]


def test_a_script_makes_an_artifact_and_its_metrics(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import sys, json, pathlib\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "print('working on seed', sys.argv[2])\n"
        "(out / 'metrics.json').write_text(json.dumps({'items_per_s': 3.5}))\n"
    )
    stage = f"{{name: s, use: script, command: [python, {script}, '{{output}}', '{{seed}}']}}"
    artifact = run(tmp_path, stage).artifacts["s"]
    assert artifact.manifest.metrics == {"items_per_s": 3.5}
    assert json.loads((artifact.path / "metrics.json").read_text()) == {"items_per_s": 3.5}
    assert run(tmp_path, stage).reused == {"s"}
    script.write_text(script.read_text() + "# edited\n")
    assert not run(tmp_path, stage).reused


def test_a_failed_script_shows_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"(?s)failed \(exit status 3\)\. It ended with:\nlast words"):
        run(tmp_path, "{name: s, use: script, command: [python, -c, 'print(\"last words\"); raise SystemExit(3)']}")


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("[no-such-program]", ScriptError, "no-such-program could not be started: No such file or directory"),
        ("[python, nothere.py]", ConfigError, r"The script nothere\.py does not exist"),
        ("[]", ConfigError, r"command is empty"),
        ("[python, -c, pass, '{input rows}']", ConfigError, r"command names \{input rows\}, which is no input"),
    ],
)
def test_a_script_that_cannot_run_says_why(tmp_path: Path, command: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, f"{{name: s, use: script, command: {command}}}")
