"""Rows that compare answers: what is read of them, what is supervised, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError, TrainError
from danlu.text.chat import ChatFormat, RenderedChat
from danlu.train.preferences import encode_answer, encode_judged, encode_pairs

from .chats import fresh

ASK = {"role": "user", "content": "navy dress"}


@pytest.fixture(scope="module")
def chat(tiny_folder: Path) -> ChatFormat:
    return fresh(tiny_folder).chat


def supervised(row: RenderedChat) -> list[int]:
    return [i for i, learnt in zip(row.ids, row.is_answer, strict=True) if learnt]


def answer_ids(chat: ChatFormat, text: str) -> list[int]:
    return [*chat.tokenizer.encode(text), *chat.tokenizer.end_ids]


def test_texts_and_messages_are_the_same_conversation(chat: ChatFormat) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "navy dress", "chosen": "Good."},
        {"prompt": [ASK], "chosen": "Good."},
        {"prompt": [ASK], "chosen": [{"role": "assistant", "content": "Good."}]},
        {"chosen": [ASK, {"role": "assistant", "content": "Good."}]},
    ]
    found = [encode_answer(row, "chosen", chat) for row in rows]
    assert all(row == found[0] for row in found)
    assert supervised(found[0]) == answer_ids(chat, "Good.")


def test_only_the_last_answer_is_supervised(chat: ChatFormat) -> None:
    before = [ASK, {"role": "assistant", "content": "Which size?"}, {"role": "user", "content": "Small."}]
    found = encode_answer({"prompt": before, "chosen": "Done."}, "chosen", chat)
    assert supervised(found) == answer_ids(chat, "Done.")


def test_without_a_template_texts_are_continued_as_they_stand(chat: ChatFormat) -> None:
    plain = ChatFormat(chat.tokenizer, None)
    found = encode_answer({"prompt": "The navy", "chosen": " dress."}, "chosen", plain)
    assert found.ids == [*chat.tokenizer.encode("The navy"), *answer_ids(chat, " dress.")]
    assert supervised(found) == answer_ids(chat, " dress.")


def test_pairs_that_teach_nothing_are_left_out_and_counted(chat: ChatFormat) -> None:
    rows = [
        {"prompt": "x", "chosen": "good", "rejected": "bad", "margin": 0.5},
        {"prompt": "x", "chosen": "same", "rejected": "same"},
        {"prompt": "x", "chosen": "good", "rejected": "bad " * 200},
    ]
    found = encode_pairs(rows, chat, 80)
    assert [pair.margin for pair in found.items] == [0.5]
    assert dict(found.left_out) == {"same": 1, "too_long": 1}
    assert found.items[0].num_tokens == sum(len(answer.ids) for answer in found.items[0].answers)
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 same, 1 too_long\. A row needs a prompt"):
        encode_pairs(rows[1:], chat, 80)


def test_judged_answers_are_held_against_the_next_rows_answer(chat: ChatFormat) -> None:
    rows = [
        {"prompt": "one", "completion": "first", "label": True},
        {"prompt": "two", "completion": "first", "label": False},
        {"prompt": "three", "completion": "second", "label": True},
    ]
    found = encode_judged(rows, chat, 80).items
    assert [row.is_desirable for row in found] == [True, False, True]
    assert [supervised(row.mismatched) for row in found] == [
        answer_ids(chat, "second"),
        answer_ids(chat, "second"),
        answer_ids(chat, "first"),
    ]
    prompts = [row.answer.ids[: row.answer.is_answer.index(True)] for row in found]
    assert [row.mismatched.ids[: len(prompt)] for row, prompt in zip(found, prompts, strict=True)] == prompts


def test_pairs_can_be_judged_too(chat: ChatFormat) -> None:
    rows = [{"prompt": "x", "chosen": "good", "rejected": "bad"}]
    found = encode_judged(rows, chat, 80).items
    assert [(supervised(row.answer), row.is_desirable) for row in found] == [
        (answer_ids(chat, "good"), True),
        (answer_ids(chat, "bad"), False),
    ]


def test_answers_that_are_all_the_same_tell_no_drift(chat: ChatFormat) -> None:
    rows = [{"prompt": str(i), "completion": "same", "label": True} for i in range(3)]
    with pytest.raises(TrainError, match=r"No row can be trained on: 3 no_other_answer\."):
        encode_judged(rows, chat, 80)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, r"A row has no 'rejected'; it has prompt, chosen\. Mend the rows"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, r"A row has chosen 3\. Give a text"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, r"A row has prompt \[\]\. Give a text"),
        (
            {"prompt": "x", "chosen": [ASK], "rejected": "b"},
            r"A row's chosen ends with a message of the user\.",
        ),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b", "margin": "c"},
            r"A row has the margin 'c'\. A margin is",
        ),
    ],
)
def test_rows_of_another_form_are_refused(chat: ChatFormat, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_pairs([row], chat, 80)


def test_a_judgement_is_true_or_false(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match=r"A row has the label 1\. Give true for a liked answer, else false"):
        encode_judged([{"prompt": "x", "completion": "a", "label": 1}], chat, 80)
