"""Faults in compared answers, judged answers and prompts, each found by name."""

from typing import Any

import pytest

from danlu.train.audit_preferences import audit_judged, audit_pairs, audit_prompts
from danlu.train.findings import Finding


def pairs(count: int) -> list[dict[str, Any]]:
    """Good rows: as often the longer answer is chosen as the shorter one."""
    return [
        {
            "prompt": f"colour {number}",
            "chosen": f"navy {number}" + " blue" * (number % 2),
            "rejected": f"mud {number}" + " brown" * (1 - number % 2),
        }
        for number in range(count)
    ]


def found_in(
    rows: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None, truncated: int = 0, **left_out: int
) -> dict[str, Finding]:
    return {f.code: f for f in audit_pairs(rows, validation or [], left_out, truncated)}


def test_good_pairs_have_no_finding() -> None:
    assert found_in(pairs(40)[:30], pairs(40)[30:]) == {}


@pytest.mark.parametrize(
    ("left_out", "code", "message"),
    [
        ({"too_long": 5}, "too_long", "50% of the rows are longer than max_row_tokens"),
        ({"same": 5}, "same", "In 50.0% of the rows chosen and rejected are equal; they are left out."),
        ({"no_answer": 5}, "no_answer", "50.0% of the rows have no token to learn"),
        ({"truncated": 5}, "truncated", "50% of the rows are longer than max_row_tokens and lose the end of an answer"),
    ],
)
def test_many_rows_that_teach_nothing_refuse_and_few_warn(left_out: dict[str, int], code: str, message: str) -> None:
    (name, many), few = next(iter(left_out.items())), found_in(pairs(20), **dict.fromkeys(left_out, 1))
    found = found_in(pairs(10), **{name: many})
    assert found[code].refuses
    assert found[code].message.startswith(message)
    assert not few[code].refuses


def test_empty_answers_are_shown_by_their_prompt() -> None:
    rows = [*pairs(9), {"prompt": "say nothing", "chosen": " \n", "rejected": "x"}]
    found = found_in(rows)["empty_answer"]
    assert (found.share, found.refuses) == (0.1, False)
    assert found.example == "the answer to 'say nothing'"
    assert found_in([*rows, {"prompt": "a", "chosen": "y", "rejected": ""}])["empty_answer"].refuses


def test_a_pair_that_stands_there_the_other_way_round_contradicts() -> None:
    row = pairs(1)[0]
    turned = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    found = found_in([*pairs(4), turned])["contradicted"]
    assert (found.share, found.refuses, found.example) == (0.4, True, "'colour 0'")


def test_pairs_whose_length_tells_warn() -> None:
    rows = [{"prompt": str(n), "chosen": f"long answer {n}", "rejected": str(n)} for n in range(30)]
    found = found_in(rows)["length_tells"]
    assert (found.share, found.refuses) == (1.0, False)
    assert found.message == "In 100% of the pairs the longer answer is chosen."
    shorter = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert "the shorter answer is chosen" in found_in(shorter)["length_tells"].message
    assert "length_tells" not in found_in(rows[:10])


def test_validation_pairs_and_prompts_that_are_trained_on_refuse() -> None:
    assert found_in(pairs(10), pairs(2))["leaked"].refuses
    other = [{**row, "chosen": "another", "rejected": "one more"} for row in pairs(2)]
    found = found_in(pairs(10), other)
    assert "leaked" not in found
    assert found["prompts_leaked"].refuses
    assert found["prompts_leaked"].message == "100% of the validation rows have a prompt that training rows have too."


def test_conversations_are_read_by_their_last_answer() -> None:
    ask = {"role": "user", "content": "navy?"}
    rows = [
        {
            "prompt": [ask],
            "chosen": [{"role": "assistant", "content": ""}],
            "rejected": [{"role": "assistant", "content": "x"}],
        },
        {
            "chosen": [ask, {"role": "assistant", "content": "a"}],
            "rejected": [ask, {"role": "assistant", "content": "b"}],
        },
    ]
    found = found_in(rows)
    assert list(found) == ["empty_answer"]
    assert found["empty_answer"].example == "the answer to 'navy?'"


# ---- judged answers --------------------------------------------------------------------------------------------------


def judged(rows: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None) -> dict[str, Finding]:
    return {f.code: f for f in audit_judged(rows, validation or [], {})}


def one(prompt: str, completion: str, *, label: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_good_judgements_have_no_finding_and_pairs_make_two_each() -> None:
    assert judged([one("a", "x", label=True), one("b", "y", label=False)], [one("c", "z", label=True)]) == {}
    assert judged(pairs(5), [one("c", "z", label=True)]) == {}


def test_answers_that_are_all_liked_refuse() -> None:
    found = judged([one("a", "x", label=True), one("b", "y", label=True)])["one_label"]
    assert found.message == "Every answer is liked: there is nothing to prefer."
    assert "not liked" in judged([one("a", "x", label=False)])["one_label"].message


def test_an_answer_that_is_liked_and_not_contradicts() -> None:
    found = judged([one("a", "x", label=True), one("A", " x", label=False)])["contradicted"]
    assert (found.share, found.refuses, found.example) == (1.0, True, "'x'")


def test_judged_prompts_that_are_watched_too_refuse() -> None:
    rows = [one("a", "x", label=True), one("b", "y", label=False)]
    assert judged(rows, [one("a", "z", label=True)])["prompts_leaked"].refuses


# ---- prompts ---------------------------------------------------------------------------------------------------------


def prompts(
    train: list[str], validation: list[str] | None = None, missing: dict[str, int] | None = None, **left_out: int
) -> dict[str, Finding]:
    return {f.code: f for f in audit_prompts(train, validation or [], left_out, missing or {})}


def test_good_prompts_have_no_finding() -> None:
    assert prompts(["1 + 1", "2 + 2"], ["3 + 3"], {"answer": 0}) == {}


def test_prompts_that_are_watched_too_refuse_and_repeated_ones_warn() -> None:
    assert prompts(["a", "b"], ["A "])["leaked"].refuses
    assert not prompts(["a", "a"])["repeated"].refuses


def test_long_prompts_name_their_own_limit() -> None:
    assert "longer than max_prompt_tokens" in prompts(["a"], too_long=1)["too_long"].message


def test_a_column_that_a_reward_cannot_do_without_refuses() -> None:
    found = prompts(["a", "b"], [], {"answer": 1})["no_column"]
    assert found.refuses
    assert found.message == "50% of the rows have no 'answer', which a reward reads."
