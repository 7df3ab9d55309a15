from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import TrainError
from danlu.core.events import Events, Silent
from danlu.models.load import load_model
from danlu.text.chat import ChatFormat
from danlu.train.answers import encode_rows as encode_any
from danlu.train.audit import audit_chats
from danlu.train.findings import Finding, report
from danlu.train.stages.sft import encode_rows

from .chats import chats


@pytest.fixture(scope="module")
def chat(tiny_folder: Path) -> ChatFormat:
    return load_model(tiny_folder, precision="fp32").chat


def say(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def findings(
    rows: list[dict[str, Any]], chat: ChatFormat, validation: list[dict[str, Any]] | None = None, limit: int = 100
) -> dict[str, Finding]:
    encoded = encode_rows(rows, chat, limit)
    return {f.code: f for f in audit_chats(rows, encoded.encoded, encoded.left_out, validation or [], chat)}


def test_good_conversations_have_no_finding(chat: ChatFormat) -> None:
    assert findings(chats(20)[:16], chat, chats(20)[16:]) == {}


def test_many_long_rows_refuse_and_few_warn(chat: ChatFormat) -> None:
    long = say(("user", "ask " * 200), ("assistant", "x"))
    many = findings([*chats(10), *[long] * 10], chat)["too_long"]
    assert many.refuses
    assert many.share == 0.5
    assert many.message == "50% of the rows are longer than max_row_tokens and would be left out."
    assert not findings([*chats(19), long], chat)["too_long"].refuses


def test_rows_without_an_answer_are_counted(chat: ChatFormat) -> None:
    found = findings([*chats(9), say(("user", "only a question"))], chat)["no_answer"]
    assert (found.share, found.refuses) == (0.1, False)
    assert "10.0% of the rows have no token to learn" in found.message


def test_a_template_that_ends_no_answer_refuses(chat: ChatFormat) -> None:
    endless = ChatFormat(chat.tokenizer, chat.source and chat.source.replace("<|im_end|>", ""))
    rows = chats(4)
    encoded = [endless.render(row["messages"], add_generation_prompt=False) for row in rows]
    found = {f.code: f for f in audit_chats(rows, encoded, {}, [], endless)}["never_ends"]
    assert found.refuses
    assert "no answer ends with the token that ends answers (<|im_end|>)" in found.message


def test_a_template_that_serves_other_tokens_than_it_trains_refuses_and_shows_where(chat: ChatFormat) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    found = findings(chats(4), ChatFormat(chat.tokenizer, source))["served_otherwise"]
    assert found.refuses
    assert found.share == 1.0
    assert "serving reads" in found.example
    assert "assistant: ' where training reads" in found.example


def test_validation_rows_that_are_trained_on_refuse(chat: ChatFormat) -> None:
    rows = chats(20)
    found = findings(rows, chat, rows[:2])["leaked"]
    assert (found.share, found.refuses) == (1.0, True)
    shouted = say(*((m["role"], m["content"].upper() + "  ") for m in rows[0]["messages"]))
    assert findings(rows, chat, [shouted])["leaked"].share == 1.0


def test_repeated_questions_warn(chat: ChatFormat) -> None:
    rows = chats(10)
    other = [say(("user", row["messages"][0]["content"]), ("assistant", "something else")) for row in rows]
    found = findings([*rows, *other], chat)["repeated"]
    assert (found.share, found.refuses) == (0.5, False)


def test_rows_of_prompt_and_completion_and_of_text_are_looked_at_too(chat: ChatFormat) -> None:
    rows = [{"prompt": "red dress", "completion": f"A red dress, {i}."} for i in range(4)] + [
        {"text": "a navy top"}
    ] * 4
    encoded = encode_any(rows, chat, 100)
    found = {f.code: f for f in audit_chats(rows, encoded.items, {}, rows[:2], chat)}
    assert (found["repeated"].share, found["repeated"].refuses) == (0.75, False)
    assert found["leaked"].share == 1.0
    assert "never_ends" not in found


# ---- telling ---------------------------------------------------------------------------------------------------------

BAD = Finding(code="bad", refuses=True, share=0.5, message="It is bad.", hint="Mend it.", example="row 3")


class Said(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_refusing_finding_stops_with_its_example_and_the_way_out() -> None:
    with pytest.raises(
        TrainError, match=r"It is bad\. For example: row 3\. Mend it\. \(audit: warn trains all the same"
    ):
        report([BAD], "refuse", Events())


def test_warn_tells_and_off_keeps_silent() -> None:
    display = Said()
    events = Events(display=display)
    assert report([BAD], "warn", events) == [{"code": "bad", "share": 0.5, "message": "It is bad."}]
    assert display.said == ["Data: It is bad. Mend it."]
    assert report([BAD], "off", events) == []
