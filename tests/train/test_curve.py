import json
from pathlib import Path

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
