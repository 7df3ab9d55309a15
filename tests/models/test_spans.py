"""Tags into spans, by hand."""

import pytest
import torch

from danlu.models.spans import Span, merge_tags

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "S-ORG", "E-PER")


def merged(text: str, tags: list[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """Words of spans with their labels; each tag is certain."""
    rows = torch.tensor([[1.0 if label == tag else 0.0 for label in LABELS] for _, _, tag in tags])
    spans = merge_tags(text, [(start, end) for start, end, _ in tags], LABELS, rows)
    return [(text[span.start : span.end], span.label) for span in spans]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-PER", "I-PER", "O"], [("Ann Lee", "PER")]),
        (["B-PER", "B-PER", "O"], [("Ann", "PER"), ("Lee", "PER")]),
        (["I-PER", "I-LOC", "O"], [("Ann", "PER"), ("Lee", "LOC")]),
        (["B-PER", "O", "I-PER"], [("Ann", "PER"), ("met", "PER")]),
        (["B-PER", "E-PER", "I-PER"], [("Ann Lee", "PER"), ("met", "PER")]),
        (["S-ORG", "S-ORG", "O"], [("Ann", "ORG"), ("Lee", "ORG")]),
        (["O", "O", "O"], []),
    ],
)
def test_prefixes_say_where_spans_begin_and_end(tags: list[str], spans: list[tuple[str, str]]) -> None:
    places = [(0, 3), (4, 7), (8, 11)]
    assert merged("Ann Lee met", [(*place, tag) for place, tag in zip(places, tags, strict=True)]) == spans


def test_the_first_piece_speaks_for_its_word_and_special_tokens_for_nothing() -> None:
    tags = [(0, 0, "B-LOC"), (0, 2, "B-PER"), (2, 5, "O"), (5, 6, "O"), (7, 9, "O"), (9, 11, "B-LOC"), (0, 0, "B-LOC")]
    assert merged("Annie, here", tags) == [("Annie", "PER")]


def test_chinese_characters_are_words_of_their_own() -> None:
    tags = [(0, 1, "B-PER"), (1, 2, "I-PER"), (2, 3, "O"), (3, 4, "B-LOC"), (4, 5, "I-LOC")]
    assert merged("王芳在上海", tags) == [("王芳", "PER"), ("上海", "LOC")]


def test_labels_without_prefixes_join_their_neighbours() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.3, 0.7], [0.8, 0.2], [0.4, 0.6]])
    spans = merge_tags("a b c d", [(0, 1), (2, 3), (4, 5), (6, 7)], ("O", "city"), scores)
    assert [(s.start, s.end, s.label) for s in spans] == [(0, 3, "city"), (6, 7, "city")]
    assert [s.score for s in spans] == pytest.approx([0.8, 0.6])
    assert isinstance(spans[0], Span)
