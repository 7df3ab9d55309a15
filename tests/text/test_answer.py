import pytest

from danlu.text.answer import AnswerParser, ReasoningPiece, ReasoningSplitter, can_think
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece, ToolParser

CASES = [
    (False, "<think>\nHm, 1 < 2.\n</think>\n\nYes.", "Hm, 1 < 2.", "Yes."),
    (False, "\n<think>a</think>b", "a", "b"),
    (False, "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (False, "  Yes, <think> is a tag.", "", "  Yes, <think> is a tag."),
    (False, "<thin", "", "<thin"),
    (False, "", "", ""),
    (True, "Hm.\n</think>\nYes. </think>", "Hm.", "Yes. </think>"),
    (True, "<think>\nHm.</think>Yes.", "Hm.", "Yes."),
    (True, "Hm, cut off </thi", "Hm, cut off </thi", ""),
]


@pytest.mark.parametrize(("starts_inside", "text", "thought", "said"), CASES)
def test_thoughts_are_told_from_what_is_said_wherever_the_text_is_cut(
    starts_inside: bool, text: str, thought: str, said: str
) -> None:
    for pieces in (list(text), *([text[:cut], text[cut:]] for cut in range(len(text) + 1))):
        splitter = ReasoningSplitter(starts_inside=starts_inside)
        found = [piece for part in pieces for piece in splitter.push(part)] + splitter.finish()
        assert "".join(piece.text for piece in found if isinstance(piece, ReasoningPiece)) == thought
        assert "".join(piece.text for piece in found if isinstance(piece, ContentPiece)) == said


def test_thoughts_come_first_and_calls_are_looked_for_in_the_rest() -> None:
    parser = AnswerParser(ReasoningSplitter(), ToolParser(names=["f"], new_id=lambda: "call_1"))
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    pieces = parser.push(f"<think>I could write {call}.</think>Well.\n{call}") + parser.finish()
    assert pieces == [
        ReasoningPiece(f"I could write {call}."),
        ContentPiece("Well."),
        CallStart(0, "call_1", "f"),
        ArgumentsPiece(0, "{}"),
    ]


def test_without_either_an_answer_is_one_text() -> None:
    parser = AnswerParser()
    assert parser.push("<think>a</think>") == [ContentPiece("<think>a</think>")]
    assert parser.push("") == []
    assert parser.finish() == []


def test_a_template_that_knows_thoughts_is_recognised() -> None:
    assert can_think("{% if '</think>' in content %}")
    assert not can_think("{{ messages }}")
    assert not can_think(None)
