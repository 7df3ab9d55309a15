"""Rows of three forms as ids."""

from pathlib import Path

import pytest

from danlu.core.errors import DataError, TrainError
from danlu.text.chat import ChatFormat
from danlu.train.answers import encode_rows

from .chats import chats, fresh


@pytest.fixture(scope="module")
def chat(tiny_folder: Path) -> ChatFormat:
    return fresh(tiny_folder).chat


def test_conversations_prompts_and_texts_become_rows(chat: ChatFormat) -> None:
    (conversation,) = chats(1)
    ask, answer = (message["content"] for message in conversation["messages"])
    found = encode_rows([conversation, {"prompt": ask, "completion": answer}, {"text": answer}], chat, 200).items
    assert found[0].ids == found[1].ids
    assert found[0].is_answer == found[1].is_answer
    tokenizer = chat.tokenizer
    assert found[2].ids == [tokenizer.begin_id, *tokenizer.encode(answer), min(tokenizer.end_ids)]
    assert all(found[2].is_answer)


def test_rows_that_cannot_be_learnt_are_counted(chat: ChatFormat) -> None:
    rows = [{"text": "a coat"}, {"text": "a coat " * 50}, {"messages": [{"role": "user", "content": "a"}]}]
    found = encode_rows(rows, chat, 40)
    assert (len(found.items), dict(found.left_out)) == (1, {"too_long": 1, "no_answer": 1})
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 too_long\. A row needs .* max_row_tokens 40"):
        encode_rows(rows[1:2], chat, 40)


def test_a_row_of_another_form_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match=r"A row has the keys label, body\. Give messages, prompt and completion, or"):
        encode_rows([{"label": 1, "body": "x"}], chat, 20)
