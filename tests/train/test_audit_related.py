from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from danlu.train.audit_related import audit_captions, audit_related, audit_targets
from danlu.train.captioned import Captioned
from danlu.train.findings import Finding
from danlu.train.related import Related
from danlu.train.source_target import SourceTarget
from danlu.train.texts import Encoded

ROW = ([1, 2], [0, 0])


def by_code(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings}


# ---- texts that belong together --------------------------------------------------------------------------------------


def related(
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None = None,
    *,
    loss: str = "contrastive",
    **more: Any,
) -> dict[str, Finding]:
    items = [Related(ROW, ROW, score=row.get("score")) for row in rows]
    return by_code(audit_related(rows, validation or [], Encoded(items=items, **more), loss=loss))


def pairs(*each: str) -> list[dict[str, Any]]:
    return [dict(zip(("anchor", "positive", "negative"), text.split("|"), strict=False)) for text in each]


def test_good_pairs_have_no_finding() -> None:
    assert related(pairs("a|b|c", "c|d|a"), pairs("e|f")) == {}


def test_positives_that_are_their_anchors_refuse_when_many() -> None:
    found = related(pairs("Red  dress|red dress", "c|d"))["same"]
    assert (found.share, found.refuses) == (0.5, True)
    assert not related([*pairs("a|a"), *pairs(*(f"x{i}|y{i}" for i in range(9)))])["same"].refuses


@pytest.mark.parametrize(("rows", "code"), [(("a|b", "c|b"), "one_positive"), (("a|b", "a|c"), "one_anchor")])
def test_one_side_for_all_rows_refuses(rows: tuple[str, ...], code: str) -> None:
    assert related(pairs(*rows))[code].refuses


def test_a_negative_that_is_a_positive_of_the_same_anchor_refuses() -> None:
    found = related(pairs("a|b|c", "a|c|d", "e|f|e"))["contradicted"]
    assert (found.refuses, found.example) == (True, "'c'")
    assert found.share == pytest.approx(2 / 3)


def test_scores_that_are_all_the_same_or_no_cosine_refuse() -> None:
    rows = [{**row, "score": score} for row, score in zip(pairs("a|a", "c|d"), (5.0, 1.0), strict=True)]
    assert related(rows, loss="cosent") == {}
    found = related(rows, loss="cosine")["score_range"]
    assert (found.share, found.refuses) == (0.5, True)
    assert "such as 5" in found.message
    assert related([{**row, "score": 1} for row in rows], loss="cosent")["one_score"].refuses


def test_repeated_leaked_cut_and_empty_pairs_are_told() -> None:
    rows = pairs("a|b", "a|b", "c|d")
    found = related(rows, rows[2:], left_out={"empty": 1}, truncated=3)
    assert found["repeated"].share == pytest.approx(1 / 3)
    assert found["leaked"].refuses
    assert found["truncated"].share == 0.5
    assert found["empty"].message == "33.3% of the rows have an empty text and would be left out."


# ---- sources and targets ---------------------------------------------------------------------------------------------


def targets(
    rows: list[tuple[str, str]], validation: list[tuple[str, str]] | None = None, *, ends: bool = True, **more: Any
) -> dict[str, Finding]:
    told, watched = ([{"source": s, "target": t} for s, t in some] for some in (rows, validation or []))
    found = Encoded(items=[SourceTarget([1], [2], t) for _, t in rows], **more)
    return by_code(audit_targets(told, watched, found, ends=ends))


def test_good_targets_have_no_finding() -> None:
    assert targets([("a", "b"), ("c", "d")], [("e", "f")]) == {}


def test_targets_that_are_their_sources_refuse_when_nearly_all_are() -> None:
    assert targets([("a", "a"), ("b", "b ")])["copied"].refuses
    assert not targets([("a", "a"), ("b", "c")])["copied"].refuses


def test_one_target_for_all_refuses() -> None:
    assert targets([("a", "x"), ("b", "x")])["one_target"].message == (
        "Every row has the target 'x': there is nothing to tell apart."
    )


def test_a_model_that_cannot_end_a_target_refuses() -> None:
    assert targets([("a", "b")], ends=False)["never_ends"].refuses


def test_sources_of_validation_rows_that_are_trained_on_refuse_with_other_targets_too() -> None:
    found = targets([("a", "b"), ("c", "d")], [("a", "e")])
    assert "leaked" not in found
    assert found["sources_leaked"].refuses
    assert found["sources_leaked"].hint == "Split by source before training."


def test_rows_that_lose_their_end_or_have_an_empty_side_are_told() -> None:
    found = targets([("a", "b"), ("c", "d"), ("", "e")], truncated=1, left_out={"empty": 1})
    assert "longer than max_source_tokens or max_target_tokens and lose their end" in found["truncated"].message
    assert found["empty"].refuses


# ---- images and texts ------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("red", "navy", "green")]
    for path in paths:
        Image.new("RGB", (8, 8), path.stem).save(path)
    return paths


def captions(
    rows: list[tuple[Path, str]], validation: list[tuple[Path, str]] | None = None, **more: Any
) -> dict[str, Finding]:
    told, watched = ([{"image": str(i), "text": t} for i, t in some] for some in (rows, validation or []))
    return by_code(audit_captions(told, watched, Encoded(items=[Captioned(i, (1,)) for i, _ in rows], **more)))


def test_good_captions_have_no_finding_several_for_one_image_among_them(images: list[Path]) -> None:
    assert captions([(images[0], "a"), (images[0], "b"), (images[1], "c")], [(images[2], "d")]) == {}


def test_images_that_cannot_be_read_refuse(images: list[Path]) -> None:
    images[1].write_bytes(b"nothing")
    found = captions([(path, path.stem) for path in images])["unreadable"]
    assert found.refuses
    assert "navy.png is not an image" in found.example


def test_one_text_or_one_image_for_all_refuses(images: list[Path]) -> None:
    assert captions([(path, "a photo") for path in images])["one_text"].refuses
    assert captions([(images[0], "a"), (images[0], "b")])["one_image"].refuses


def test_texts_that_are_labels_warn(images: list[Path]) -> None:
    rows = [(path, text) for path in images for text in ("cat", "dog")]
    found = captions(rows)["few_texts"]
    assert (found.refuses, found.share) == (False, pytest.approx(2 / 3))


def test_images_of_validation_rows_that_are_trained_on_refuse(images: list[Path]) -> None:
    found = captions([(images[0], "a"), (images[1], "b")], [(images[0], "c")])
    assert found["images_leaked"].message == "100% of the validation rows have an image that training rows have too."
    assert found["images_leaked"].refuses


def test_rows_whose_image_is_no_file_refuse_when_many(images: list[Path]) -> None:
    found = captions([(images[0], "a"), (images[1], "b")], left_out={"missing_image": 1})
    assert found["missing_image"].message == "50.0% of the rows name an image that is no file and would be left out."
    assert found["missing_image"].refuses
