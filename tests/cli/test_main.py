import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.cli.main import main, verbs

ALL_VERBS = {
    "bench",
    "chat",
    "convert",
    "inspect",
    "export",
    "generate",
    "lineage",
    "run",
    "runs",
    "schema",
    "serve",
    "show",
    "tokenizer",
    "train",
    "finetune",
    "verify",
}
RECIPE = """
name: tiny
stages:
  - {name: rows, use: fetch, path: SOURCE}
  - name: count
    use: script
    inputs: {rows: rows}
    command: [python, -c, "import sys, json; json.dump({'bytes': len(open(sys.argv[1] + '/rows.csv').read())},
      open(sys.argv[2] + '/metrics.json', 'w'))", "{input rows}", "{output}"]
aliases: {counted: count}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    source, path = tmp_path / "rows.csv", tmp_path / "tiny.yaml"
    source.write_text("a,b\n1,2\n")
    path.write_text(RECIPE.replace("SOURCE", str(source)))
    return path


def test_help_lists_every_verb_with_its_line_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(verbs()) == ALL_VERBS
    assert all(line in text for line in verbs().values())
    assert "danlu run recipes/product_copy.yaml train.steps=50 --no-serve" in text


def test_help_is_fast_and_loads_no_verb() -> None:
    code = (
        "import sys; from danlu.cli.main import main; main(['--help'])\n"
        "assert not {'torch', 'rich', 'tyro', 'jinja2', 'danlu.flow'} & sys.modules.keys(), sys.modules.keys()"
    )
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3


def test_importing_danlu_is_fast_and_loads_no_torch() -> None:
    code = (
        "import time; started = time.perf_counter()\n"
        "import danlu, sys; seconds = time.perf_counter() - started\n"
        "assert not {'torch', 'numpy', 'yaml', 'rich'} & sys.modules.keys(); print(seconds)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.05


@pytest.mark.parametrize(
    "verb",
    [
        "runs",
        "show",
        "lineage",
        "verify",
        "schema",
        "run",
        "serve",
        "chat",
        "generate",
        "tokenizer",
        "convert",
        "inspect",
        "export",
        "train",
        "finetune",
    ],
)
def test_a_verbs_help_explains_it_with_examples_and_without_torch(verb: str) -> None:
    code = f"import sys; from danlu.cli.main import main; status = main(['{verb}', '--help']); "
    code += "assert 'torch' not in sys.modules; sys.exit(status)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"danlu {verb}" in done.stdout
    assert verbs()[verb].split(":")[0] in done.stdout


def test_no_words_at_all_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: danlu VERB" in capsys.readouterr().out


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("danlu 0.")


def test_an_unknown_verb_is_wrong_usage_and_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineag"]) == 2
    assert "There is no verb 'lineag'. Did you mean 'lineage'?" in capsys.readouterr().err


def test_an_unknown_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--lst", "3"]) == 2
    assert "--lst" in capsys.readouterr().err


def test_an_error_is_one_line_with_a_hint_and_no_traceback(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "cuont.command=[a]"]) == 1
    error = capsys.readouterr().err
    assert error == "error: Override 'cuont.command=[a]': there is no stage 'cuont'. Did you mean 'count'?\n"


def test_a_model_that_is_nowhere_is_one_line_before_torch_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nothing"]) == 1
    assert "is called 'nothing'. Run a recipe first: danlu run RECIPE." in capsys.readouterr().err


def test_a_path_that_is_not_there_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/nowhere/model", "./model", "model.gguf"):
        assert main(["generate", path, "hello"]) == 1
        assert capsys.readouterr().err == f"error: There is no file or folder {path}. Check the path.\n"


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def call(verb: str, arguments: list[str]) -> int:
        raise MemoryError("no memory for 56623168 bytes")

    monkeypatch.setattr("danlu.cli.main._call", call)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == (
        "error: There is not enough memory: no memory for 56623168 bytes. "
        "End other programs, or take a smaller model, batch or context.\n"
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.core.errors import StoreError

    with pytest.raises(StoreError):
        main(["show", "nothing", "--debug"])
    monkeypatch.setenv("DANLU_DEBUG", "1")
    with pytest.raises(StoreError):
        main(["show", "nothing"])


def test_ctrl_c_exits_130_and_says_how_to_go_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("danlu.run", interrupt)
    assert main(["run", str(recipe)]) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_run_then_runs_show_lineage_verify(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe)]) == 0
    captured = capsys.readouterr()
    assert "✓ [2/2] count" in captured.err
    assert "bytes 8" in captured.err
    assert "Done: 2 made, 0 reused." in captured.err

    assert main(["run", str(recipe)]) == 0
    assert "Done: 0 made, 2 reused." in capsys.readouterr().err

    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "0 made, 2 reused of 2" in lines[-1]

    assert main(["show", "counted"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("script", "metrics.json", "bytes", "(estimated)", "stage version 1"))

    assert main(["show", "latest"]) == 0
    assert "reused" in capsys.readouterr().out

    assert main(["show", "counted", "--json"]) == 0
    assert '"metrics": {\n    "bytes": 8\n  }' in capsys.readouterr().out

    assert main(["lineage", "counted"]) == 0
    text = capsys.readouterr().out
    assert text.index("count") < text.index("rows: rows")
    assert "sha256" in text

    assert main(["verify", "counted"]) == 0
    assert capsys.readouterr().out.count("✓") == 2


def test_verify_names_the_damaged_file_and_fails(
    recipe: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe)]) == 0
    next(own_home.glob("artifacts/*/rows.csv")).write_text("a,b\n1,3\n")
    capsys.readouterr()
    assert main(["verify"]) == 1
    error = capsys.readouterr().err
    assert "rows.csv has changed" in error
    assert "1 of 2 artifacts are damaged" in error


def test_an_empty_store_says_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert "Start one: danlu run" in capsys.readouterr().out


def test_schema_of_one_stage_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--stage", "fetch"]) == 0
    assert '"const": "fetch"' in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(recipe: Path) -> None:
    command = f"{sys.executable} -m danlu.cli.main schema | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
