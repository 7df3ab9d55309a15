from typing import Any

import pytest

from danlu.core.errors import DataError
from danlu.data.formats import as_chat, as_labelled, as_source_target, as_text, renamed

ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, ANSWER], "id": 3},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
    ],
    ids=["messages", "sharegpt", "alpaca", "prompt", "question"],
)
def test_every_common_form_of_a_chat_is_the_same_conversation(row: dict[str, Any]) -> None:
    assert as_chat(row) == {"messages": [ASK, ANSWER]}


def test_an_input_follows_its_instruction_and_a_system_text_comes_first() -> None:
    row = as_chat({"instruction": "sum up", "input": "a text", "output": "x", "system": "be brief"})
    assert [m["content"] for m in row["messages"]] == ["be brief", "sum up\n\na text", "x"]
    assert row["messages"][0]["role"] == "system"


def test_labels_keep_pairs_and_scores() -> None:
    assert as_labelled({"sentence": "x", "sentiment": 1, "other": 2}) == {"text": "x", "label": 1}
    assert as_labelled({"text": "x", "text_pair": "y", "score": 0.5}) == {"text": "x", "text_pair": "y", "score": 0.5}
    assert as_labelled({"image": "a.png", "label": "cat"}) == {"image": "a.png", "label": "cat"}


def test_documents_and_summaries_are_sources_and_targets() -> None:
    assert as_source_target({"document": "long", "summary": "short"}) == {"source": "long", "target": "short"}
    assert as_text({"content": "x", "url": "y"}) == {"text": "x"}


def test_columns_are_renamed_first() -> None:
    assert renamed({"stars": 5, "review": "x"}, {"text": "review", "label": "stars"}) == {"text": "x", "label": 5}
    with pytest.raises(DataError, match=r"no column 'stars'\. It has review"):
        renamed({"review": "x"}, {"label": "stars"})


@pytest.mark.parametrize("read", [as_chat, as_labelled, as_source_target, as_text])
def test_rows_that_are_not_understood_name_their_columns(read: Any) -> None:
    with pytest.raises(DataError, match=r"A row has the columns alpha, beta\. Give .* or say which of yours they are"):
        read({"alpha": 1, "beta": 2})


def test_a_turn_of_an_unknown_role_is_refused() -> None:
    with pytest.raises(DataError, match=r"has the turn .*robot.* from is one of human"):
        as_chat({"conversations": [{"from": "robot", "value": "x"}]})
