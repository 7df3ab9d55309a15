from pathlib import Path

import pytest

import danlu
from danlu.cli.main import main
from danlu.core.records import GenerateOptions

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_prints_what_the_model_writes(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = GenerateOptions(max_tokens=8, no_repeat_ngram_size=2)
    (expected,) = danlu.load(tiny_folder).generate(["The navy"], options)
    words = ["generate", str(tiny_folder), "The navy", "--raw", "--max-tokens", "8"]
    assert main([*words, "--no-repeat-ngram-size", "2"]) == 0
    assert capsys.readouterr().out == expected.text + "\n"


def test_several_answers_are_printed_one_after_the_other(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    answers = danlu.load(tiny_folder).generate(["The navy"], GenerateOptions(max_tokens=6, num_beams=3, n=2))
    words = ["generate", str(tiny_folder), "The navy", "--raw", "--max-tokens", "6", "--num-beams", "3", "--n", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out == "\n\n".join(answer.text for answer in answers) + "\n"


def test_log_probabilities_follow_the_answer(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = danlu.load(tiny_folder).generate(["The navy"], GenerateOptions(max_tokens=2, logprobs=1))
    assert main(["generate", str(tiny_folder), "The navy", "--raw", "--max-tokens", "2", "--logprobs", "1"]) == 0
    first, second = answer.logprobs
    printed = capsys.readouterr().out.removeprefix(answer.text + "\n").splitlines()
    assert printed == [
        f"token {token.token_id}: {token.logprob:.3f} (of {token.token_id} {token.logprob:.3f})"
        for token in (first, second)
    ]


def test_own_settings_are_the_start_and_flags_change_them(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text('{"num_beams": 2, "typical_p": 0.5}')
    assert main(["generate", str(folder), "The navy", "--raw", "--max-tokens", "3"]) == 0
    assert main(["generate", str(folder), "The navy", "--raw", "--own"]) == 1, "typical_p is not supported"


def test_an_option_out_of_range_is_one_line(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_folder), "a", "--min-p", "2"]) == 1
    assert "min_p is 2.0. Use 0 to 1." in capsys.readouterr().err
