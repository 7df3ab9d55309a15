import json
import os
from pathlib import Path

import pytest

from danlu.train.curve import CurveLog


def test_lines_are_rounded_kept_and_read_back_up_to_a_count(tmp_path: Path) -> None:
    log = CurveLog(tmp_path / "work" / "log.jsonl")
    log.truncate(0)
    log.add({"step": 1, "loss": 1.23456789})
    log.add({"step": 2, "loss": 1.0, "sample": "红色"})
    again = CurveLog(tmp_path / "work" / "log.jsonl")
    again.truncate(1)
    assert again.lines == [{"step": 1, "loss": 1.234568}]
    again.add({"step": 2, "loss": 0.5})
    assert again.values("loss") == [1.234568, 0.5]
    again.copy_to(tmp_path / "curve.jsonl")
    assert (tmp_path / "curve.jsonl").read_text() == (tmp_path / "work" / "log.jsonl").read_text()


def test_what_is_no_number_is_left_out_for_it_is_not_json(tmp_path: Path) -> None:
    log = CurveLog(tmp_path / "log.jsonl")
    log.truncate(0)
    log.add({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1}


def test_a_line_may_hold_every_kind_of_line_end(tmp_path: Path) -> None:
    log = CurveLog(tmp_path / "log.jsonl")
    log.truncate(0)
    log.add({"step": 1, "sample": "a\u2028b\u2029c\x85d\x0be\r\nf"})
    log.add({"step": 2})
    again = CurveLog(tmp_path / "log.jsonl")
    again.truncate(2)
    assert again.lines == log.lines


def test_who_dies_while_cutting_the_curve_back_leaves_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CurveLog(tmp_path / "log.jsonl")
    log.truncate(0)
    for step in (1, 2, 3):
        log.add({"step": step})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            CurveLog(tmp_path / "log.jsonl").truncate(2)
    again = CurveLog(tmp_path / "log.jsonl")
    again.truncate(2)
    assert again.values("step") == [1, 2]


def test_a_line_that_was_cut_short_by_a_crash_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    log = CurveLog(tmp_path / "log.jsonl")
    log.truncate(5)
    assert log.lines == [{"step": 1}]
