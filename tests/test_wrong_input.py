"""What a new user gets wrong: one clear line (what, value, what to do), exit status 1, nothing half-made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.lineage.store import Store
from tests.tiny import write_shop

RECIPE = """
name: mine
stages:
  - {{name: rows, use: fetch, path: {rows}}}
  - {{name: data, use: prepare, inputs: {{rows: rows}}, split: {{test_products: 8, validation_products: 2}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe over reviews.csv, in the folder where the user is."""
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path / "reviews.csv")
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(rows="reviews.csv"))
    return path


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one error line of a command that must fail."""
    assert main(list(words)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def kinds(home: Path) -> set[str]:
    """What the store holds; every artifact in it is whole."""
    store = Store(home)
    return {store.verify(identifier).manifest.kind for identifier in store.ids()}


TEXT = "Clothing ID,Title,Review Text,Rating,Class Name\n"
ROW = '1,Nice,"A soft navy dress, lined, with a loose fit.",5,Dresses\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.replace("Review Text", "Reviw Text") + ROW, "There is no column 'Review Text'. Did you mean "
         "'Reviw Text'? Set it under 'columns'."),
        ("", "reviews.csv is empty (0 bytes). Give a file with rows, or make it again."),
        (TEXT, "reviews.csv has no rows. Give a file with at least one row."),
        (TEXT + ROW + "1,2\n", "reviews.csv, line 3: 2 fields instead of 5. Mend or remove the line, or set "
         "on_broken: drop to leave such rows out."),
        (TEXT.encode() + ROW.encode().replace(b"soft", b"s\xf6ft"), "reviews.csv, line 2 is not UTF-8 (byte 0xf6 at "
         "position 12). Convert it, for example: iconv -f gb18030 -t utf-8 reviews.csv."),
        (TEXT + ROW.replace(",5,", ",five,"), "The column 'Rating' does not hold numbers: Failed to parse string: "
         "'five' as a scalar of type double. Mend the value, or set columns.rating to null."),
        (TEXT + ROW, "No pair is left of 1 rows; most were dropped as copy_too_short. Check the columns, or loosen "
         "that operator's options."),
    ],
    ids=["column", "empty", "header", "fields", "encoding", "number", "few"],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named_as_the_user_knows_them(
    content: str | bytes, message: str, recipe: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("reviews.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    assert complaint(capsys, "run", str(recipe)) == message
    assert kinds(own_home) == {"source"}


def test_a_broken_json_row_is_named_by_its_line(
    recipe: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.format(rows="reviews.jsonl"))
    Path("reviews.jsonl").write_text('{"Review Text": "a"}\n{"Review Text": \n')
    line = complaint(capsys, "run", str(recipe))
    assert line.startswith("reviews.jsonl, line 2: not JSON: '{\"Review Text\":' (Expecting value). Mend or remove")
    assert kinds(own_home) == {"source"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("split", "splt", "Unknown key 'data.splt'. Did you mean 'split'?"),
        ("test_products", "test_product", "Unknown key 'data.split.test_product'. Did you mean 'test_products'?"),
        ("use: prepare", "use: prepair", "data.use is 'prepair'. There is no flow.stages plugin 'prepair'. Did you "
         "mean 'prepare'?"),
        ("rows: rows", "rows: row", "data.inputs.rows is 'row', which is no stage. Did you mean 'rows'?"),
        ("name: mine", "name: [mine", "mine.yaml is not valid YAML (line 3): expected ',' or ']', but got ':'. "
         "Mend the line it names."),
        ("reviews.csv", "nothere.csv", "nothere.csv does not exist (from CWD). Mend path."),
    ],
)  # fmt: skip
def test_a_recipe_that_is_wrong_is_told_before_anything_is_made(
    before: str, after: str, message: str, recipe: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace(before, after, 1))
    assert complaint(capsys, "run", "mine.yaml") == message.replace("CWD", str(Path.cwd()))
    assert not own_home.exists()


def test_an_empty_recipe_says_what_a_recipe_has(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("")
    assert complaint(capsys, "run", "mine.yaml") == "mine.yaml is empty. A recipe has name: and stages:."


def test_a_truncated_download_in_the_cache_is_removed_and_told(
    recipe: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "0123456789abcdef" * 4
    pinned = f"package: some-data, version: '1.0', member: a.csv, sha256: '{digest}'"
    recipe.write_text(recipe.read_text().replace("path: reviews.csv", pinned))
    wheel = own_home / "cache" / digest / "some_data-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"PK\x03\x04 only the beginning")
    line = complaint(capsys, "run", str(recipe))
    assert line.startswith(f"{wheel.name} is not the pinned file: sha256 is ")
    assert line.endswith("It was deleted. Run the same command to fetch it again; if it stays wrong, the index serves "
                         "another file.")  # fmt: skip
    assert not wheel.exists()
    assert kinds(own_home) == set()


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="needs a kernel that lets users mount in a namespace of their own",
)
def test_a_full_disk_is_told_keeps_what_is_finished_and_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    danlu = f"{sys.executable} -m danlu.cli.main run mine.yaml --home small"
    script = (
        f"mount -t tmpfs -o size=200k tmpfs small && {danlu}; echo status $?; ls small/artifacts | wc -l; "
        f"mount -o remount,size=20m small; {danlu}; echo status $?"
    )
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.split() == ["status", "1", "1", "status", "0"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: The disk is full: {home}/")
    assert errors[0].endswith(
        "could not be written (0 MB free). Free space or set DANLU_HOME to a larger disk, then run the same command: "
        "finished work is kept."
    )
    assert "Done: 1 made, 1 reused." in done.stderr
