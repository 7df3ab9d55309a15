"""A conversation in a terminal, with a model that says what it was told."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.cli.dialogue import HELP, Dialogue
from danlu.core.errors import DataError, RequestError
from danlu.core.records import Delta, GenerateOptions, Usage


class Echo:
    """Answers with the last turn in capitals; "stop" is interrupted in the middle, "fail" fails."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[dict[str, str]], GenerateOptions]] = []
        self.is_closed = False

    def stream(self, prompt, options=None) -> Iterator[Delta]:
        self.seen.append((list(prompt), options))
        text = prompt[-1]["content"]
        try:
            if text == "fail":
                raise RequestError("The prompt is too long.", "Shorten it.", code="context_length_exceeded")
            yield Delta(text=text.upper()[:2])
            if text == "stop":
                raise KeyboardInterrupt
            yield Delta(text=text.upper()[2:])
            usage = Usage(prompt_tokens=len(prompt), completion_tokens=3, cached_tokens=1)
            yield Delta(text="", finish_reason="stop", usage=usage)
        finally:
            self.is_closed = True


class Talk:
    def __init__(self, **settings) -> None:
        self.model, self.out, self.notes = Echo(), io.StringIO(), io.StringIO()
        self.dialogue = Dialogue(
            self.model, GenerateOptions(temperature=0.7), out=self.out, notes=self.notes, **settings
        )  # fmt: skip

    def __call__(self, *texts: str) -> str:
        """What was noted after these texts."""
        self.notes.seek(0)
        self.notes.truncate()
        for text in texts:
            assert self.dialogue.take(text)
        return self.notes.getvalue()


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_questions_and_answers_are_one_conversation(talk: Talk) -> None:
    talk("丹炉 hi", "", "   ", "//more")
    assert talk.out.getvalue() == "丹炉 HI\n/MORE\n"
    assert [turn["content"] for turn in talk.dialogue.messages] == ["丹炉 hi", "丹炉 HI", "/more", "/MORE"]
    assert [turn["role"] for turn in talk.model.seen[-1][0]] == ["user", "assistant", "user"]


def test_the_system_message_comes_first_and_can_be_dropped(talk: Talk) -> None:
    assert "no system message" in talk("/system")
    assert talk("/system Be brief.", "hi") == "system: Be brief.\n"
    assert talk.model.seen[-1][0][0] == {"role": "system", "content": "Be brief."}
    assert "no system message" in talk("/system -")
    assert talk.dialogue.messages[0]["role"] == "user"


def test_settings_are_checked_as_everywhere(talk: Talk) -> None:
    assert talk("/set") == "temperature 0.7\n"
    told = talk("/set temperature 0.2", "/set top-k 5", "/set stop [a, b]")
    assert told == "temperature 0.2\ntop_k 5\nstop ('a', 'b')\n"
    talk("hi")
    options = talk.model.seen[-1][1]
    assert (options.temperature, options.top_k, options.stop) == (0.2, 5, ("a", "b"))
    assert "error: /set: temperature is 9.0. Use 0 to 2." in talk("/set temperature 9")
    assert "error: There is no setting 'temperatur'. Did you mean 'temperature'?" in talk("/set temperatur 1")
    assert talk("/set seed") == "seed None\n"
    assert talk.dialogue.options.temperature == 0.2


def test_an_answer_can_be_had_again_and_taken_back(talk: Talk) -> None:
    assert "error: There is no question yet. Ask one." in talk("/retry")
    assert talk("/undo") == "There is nothing to take back.\n"
    talk("a", "b", "/retry")
    assert [turn["content"] for turn in talk.dialogue.turns] == ["a", "A", "b", "B"]
    assert talk("/undo") == "taken back: b\n"
    assert [turn["content"] for turn in talk.dialogue.turns] == ["a", "A"]
    talk("/clear")
    assert talk.dialogue.turns == []


def test_ctrl_c_stops_the_answer_and_keeps_what_is_written(talk: Talk) -> None:
    assert "(stopped)" in talk("stop", "on")
    assert talk.model.is_closed
    assert talk.out.getvalue() == "ST …\nON\n"
    assert [turn["content"] for turn in talk.dialogue.turns] == ["stop", "ST", "on", "ON"]


def test_a_question_that_failed_is_not_kept_but_can_be_sent_again(talk: Talk) -> None:
    assert talk("fail") == (
        "error: The prompt is too long. Shorten it. /undo takes the last question back, /clear begins anew.\n"
    )
    assert (talk.dialogue.turns, talk.dialogue.num_failed) == ([], 1)
    talk("/retry")
    assert talk.model.seen[-1][0] == [{"role": "user", "content": "fail"}]


def test_tokens_and_speed_are_told_when_asked_for(talk: Talk) -> None:
    assert talk("hi") == ""
    shown = talk("/stats", "again", "/stats")
    assert "[3 tokens read (1 from the cache), 0.00 s to the first word, 3 written, " in shown
    assert talk("/tokens") == "last: 3 read (1 from the cache), 3 written; session: 4 read, 6 written\n"
    assert " tokens/s]" in Talk(shows_stats=True)("hi")


def test_a_saved_conversation_is_gone_on_with(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert talk("/system Be brief.", "hi", f"/save {file}").endswith(f"3 messages are in {file}.\n")
    assert json.loads(file.read_text())["messages"][0] == {"role": "system", "content": "Be brief."}
    other = Talk()
    assert other(f"/load {file}") == "3 messages are loaded.\n"
    assert (other.dialogue.system, other.dialogue.messages) == ("Be brief.", talk.dialogue.messages)
    assert "error: /save needs a file. For example /save talk.json" in talk("/save")
    assert "error: /load needs a file. For example /load talk.json" in talk("/load")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"other": 1}', r"holds no messages. It must hold {\"messages\""),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "king", "content": ""}]}',
            "Message 2 of .* no role",
        ),
        ('{"messages": [{"role": "user", "content": 3}]}', "Message 1 of .* has no role or no text"),
    ],
)
def test_a_file_that_holds_no_conversation_is_told(content: str, words: str, talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(DataError, match=words):
        talk.dialogue.load(file)
    assert talk(f"/load {file}").startswith("error: ")


def test_help_names_every_command_and_an_unknown_one_suggests_the_nearest(talk: Talk) -> None:
    assert talk("/help") == HELP + "\n"
    assert all(f"/{name}" in HELP for name in talk.dialogue._commands if name != "quit")
    assert "error: There is no command /retri. Did you mean 'retry'? See /help." in talk("/retri")
    assert not talk.dialogue.take("/exit")
    assert not talk.dialogue.take("/quit")
