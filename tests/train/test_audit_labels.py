from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from danlu.text.tokenizer import TextTokenizer
from danlu.train.audit_labels import audit_labels, audit_tags
from danlu.train.findings import Finding
from danlu.train.labelled import Labelled
from danlu.train.tagged import Tagged
from danlu.train.texts import Encoded

ROW = ([1, 2, 3], [0, 0, 0])


def labels(
    rows: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None, **encoded: Any
) -> dict[str, Finding]:
    items = [Labelled(Path(row["image"]) if "image" in row else ROW, (1.0, 0.0)) for row in rows]
    found = Encoded(**{"items": items, **encoded})
    return {f.code: f for f in audit_labels(rows, validation or [], found)}


def of(texts: list[str], names: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": name} for text, name in zip(texts, names, strict=True)]


def test_good_labels_have_no_finding() -> None:
    assert labels(of(["fine cloth", "poor cloth"], ["positive", "negative"]), [{"text": "other"}]) == {}


def test_one_text_with_two_labels_is_shown() -> None:
    rows = of(["fine cloth", "Fine  cloth", "x", "y"], ["good", "bad", "bad", "good"])
    found = labels(rows)["contradicted"]
    assert (found.share, found.refuses, found.example) == (0.5, True, "'fine cloth'")


def test_a_text_with_another_partner_may_have_another_label() -> None:
    """Of entailment: one premise, several hypotheses."""
    rows = [{"text": "It rains.", "text_pair": pair, "label": i} for i, pair in enumerate(("It is wet.", "It is dry."))]
    assert labels(rows, [{"text": "It rains.", "text_pair": "It is late.", "label": 1}]) == {}


def test_scores_may_differ_but_not_all_be_the_same() -> None:
    assert labels([{"text": "a", "text_pair": "b", "score": 0.5}, {"text": "a", "text_pair": "b", "score": 0.75}]) == {}
    assert labels([{"text": text, "score": 0.5} for text in "ab"])["one_label"].refuses


def test_labels_of_one_row_have_no_order() -> None:
    assert "contradicted" not in labels(of(["a", "a", "b"], [["x", "y"], ["y", "x"], ["x"]]))


def test_a_single_label_refuses() -> None:
    assert labels(of(["a", "b"], ["x", "x"]))["one_label"].message == (
        "Every row has the label 'x': there is nothing to tell apart."
    )


def test_a_label_that_nearly_all_rows_have_warns() -> None:
    rows = of([f"text {i}" for i in range(100)], ["common"] * 98 + ["rare"] * 2)
    found = labels(rows)["lopsided"]
    assert (found.share, found.refuses) == (0.98, False)


def test_texts_that_name_their_label_warn() -> None:
    found = labels(of(["a dress in red", "the blouse fits"], ["dress", "blouse"]))["names_its_label"]
    assert (found.share, found.refuses) == (1.0, False)


def test_texts_that_lose_their_end_are_counted() -> None:
    found = labels(of(["a", "b"], ["x", "y"]), truncated=1)["truncated"]
    assert (found.share, found.refuses) == (0.5, True)


def test_rows_left_out_are_told_by_reason_and_refuse_when_many() -> None:
    rows = of(["a", "b", "", "d"], ["x", "y", "x", "y"])
    found = labels(rows, left_out={"empty": 1, "unknown_label": 2})
    assert (found["empty"].message, found["empty"].refuses) == (
        "25.0% of the rows have no text and would be left out.",
        False,
    )
    assert found["unknown_label"].refuses


def test_validation_rows_that_are_trained_on_refuse() -> None:
    rows = of(["a", "b"], ["x", "y"])
    assert labels(rows, rows[:1])["leaked"].refuses


def test_an_image_that_ends_early_or_is_none_refuses(tmp_path: Path) -> None:
    whole, torn, text = (tmp_path / name for name in ("whole.png", "torn.png", "text.png"))
    Image.new("RGB", (64, 64), "navy").save(whole)
    torn.write_bytes(whole.read_bytes()[:60])
    text.write_text("no image")
    rows = [{"image": str(path), "label": i % 2} for i, path in enumerate((whole, torn, text))]
    found = labels(rows)["unreadable"]
    assert found.refuses
    assert found.share == pytest.approx(2 / 3)
    assert found.example.startswith("torn.png: ")
    assert "unreadable" not in labels([rows[0], {**rows[0], "label": 1}])


def test_tokens_that_the_tokenizer_cannot_write_refuse_when_many_unless_the_token_also_ends_rows() -> None:
    backend = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "</s>"])
    found = Encoded(items=[Labelled(([0, 1, 2], [0] * 3), (1.0,))] * 2)
    for role, expected in (("<unk>", True), ("</s>", False)):
        tokenizer = TextTokenizer(backend, end_tokens=["</s>"], roles={"unk_token": role})
        codes = {f.code for f in audit_labels(of(["a", "b"], ["x", "y"]), [], found, tokenizer) if f.refuses}
        assert ("unknown_tokens" in codes) is expected


# ---- tags ------------------------------------------------------------------------------------------------------------

NAMES = ("O", "B-PLACE", "I-PLACE", "B-NAME", "I-NAME")


def tags(
    rows: list[dict[str, Any]],
    indices: list[tuple[int, ...]],
    validation: list[dict[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Finding]:
    found = Encoded(items=[Tagged(ROW, tuple(range(len(each))), each) for each in indices], **more)
    return {f.code: f for f in audit_tags(rows, validation or [], found, NAMES)}


def words(*each: str) -> list[dict[str, Any]]:
    return [{"tokens": text.split(), "tags": ["O"] * len(text.split())} for text in each]


def test_good_tags_have_no_finding() -> None:
    assert tags(words("in Rome", "so Ada"), [(0, 1), (0, 3)], words("and then")) == {}


def test_rows_with_nothing_but_outside_refuse() -> None:
    found = tags(words("in Rome", "so Ada"), [(0, 0), (0, 0)])["all_outside"]
    assert found.refuses
    assert found.message == "In 100% of the rows every word is tagged O."


def test_tags_that_no_word_has_warn_but_not_those_that_go_on() -> None:
    found = tags(words("in Rome", "so Rome"), [(0, 1), (0, 1)])["unused_tags"]
    assert (found.refuses, found.message) == (False, "No word has the tag B-NAME: it would never be learnt.")


def test_spans_that_begin_inside_a_word_are_counted_and_shown() -> None:
    rows = [{"text": "in Rome", "spans": [{"start": start, "end": 7, "label": "PLACE"}]} for start in (3, 4)]
    found = tags(rows, [(0, 1), (0, 3)])["inside_words"]
    assert (found.share, found.refuses) == (0.5, True)
    assert "('in Rome')" in found.message


def test_one_text_with_two_taggings_refuses() -> None:
    rows = words("in Rome", "in Rome", "so Ada")
    rows[1]["tags"] = ["O", "B-PLACE"]
    found = tags(rows, [(0, 0), (0, 1), (0, 3)])
    assert found["contradicted"].refuses
    assert found["repeated"].share == pytest.approx(1 / 3)


def test_rows_without_tags_and_leaked_ones_refuse() -> None:
    rows = words("in Rome", "so Ada")
    found = tags(rows, [(0, 1)], rows[:1], left_out={"no_tags": 1})
    assert found["no_tags"].message == "50.0% of the rows have no tags and no spans and would be left out."
    assert found["no_tags"].refuses
    assert found["leaked"].refuses
