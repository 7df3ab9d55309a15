import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import danlu
from danlu.flow.quality import format_metric
from danlu.flow.report import render_report
from danlu.flow.words import WORDS, duration, headline
from danlu.lineage.runs import RunRecord
from danlu.lineage.store import Artifact, Store

from .demo import build


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Artifact]]:
    return build(tmp_path_factory.mktemp("demo"))


class Balanced(HTMLParser):
    """Checks that every element is closed, and gathers the text."""

    VOID = ("meta", "br", "hr", "img", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_shows_every_piece_it_gets(demo: tuple[Store, dict[str, Artifact]]) -> None:
    run = RunRecord(id="1", recipe="product_copy", path="recipes/p.yaml", overrides=("a.b=1",), started="2025-01-01")
    text = " ".join(Balanced(render_report(*demo, run=run)).text)
    for expected in (
        *("product_copy", "BLEU-4", "6.84", "6.34 – 7.39", "87.1%", "139.1 MB", "Held-out items: 240"),
        *("17,092", "near duplicate", "641", "validation 1.72", "A relaxed navy wrap dress", "Soft cotton"),
        *("Difference: base → tuned", "+5.63", "< 0.001", "eval_int8", "some-package 1.7.0 d/reviews.parquet"),
        *("5.6×", "transformers items per s, float32", "2.40"),
        *("danlu run recipes/p.yaml a.b=1", "estimated", "0.48 kg/kWh", "nrefs:1|case:mixed|tok:13a"),
    ):
        assert expected in text, expected


def test_the_report_loads_nothing_and_runs_nothing(demo: tuple[Store, dict[str, Artifact]]) -> None:
    html = render_report(*demo)
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|@import|url\(|src=|href=", html)


def test_what_a_model_wrote_cannot_become_markup(demo: tuple[Store, dict[str, Artifact]]) -> None:
    html = render_report(*demo)
    assert "&lt;b&gt;Perfect&lt;/b&gt;" in html
    assert "<b>Perfect" not in html


@pytest.mark.parametrize("missing", ["data", "train", "base", "tuned", "int8", "compared", "peer"])
def test_a_missing_piece_is_left_out(demo: tuple[Store, dict[str, Artifact]], missing: str) -> None:
    store, inputs = demo
    Balanced(render_report(store, {name: a for name, a in inputs.items() if name != missing}))


def test_a_report_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    Balanced(render_report(Store(tmp_path), {}))


def test_headings_come_in_chinese_too(demo: tuple[Store, dict[str, Artifact]]) -> None:
    html = render_report(*demo, language="zh")
    assert "按原因丢弃" in html
    assert 'lang="zh-CN"' in html
    assert WORDS["en"].keys() == WORDS["zh"].keys()


def test_models_whose_intervals_hold_the_best_value_are_marked_alike(demo: tuple[Store, dict[str, Artifact]]) -> None:
    html = render_report(*demo)
    row = html[html.index("BLEU-4<span") :]
    row = row[: row.index("</tr>")]
    assert row.count('<td class="best">') == 2


def test_numbers_read_as_people_write_them() -> None:
    assert format_metric("coverage", 0.8712) == "87.1%"
    assert format_metric("size_bytes", 139_102_208) == "139.1 MB"
    assert format_metric("bleu4", 6.842) == "6.84"
    assert [duration(s) for s in (0.04, 9.96, 41, 59.7, 372, 7500)] == [
        *("0.0 s", "10.0 s", "41 s", "1 min 00 s", "6 min 12 s", "2 h 05 min")
    ]
    assert headline({"a_b": 1234, "c": 0.12345, "d": {"e": 1}, "f": True}) == "a b 1,234 · c 0.1235"


def test_the_report_stage_publishes_report_html(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nstages:\n"
        "  - {name: s, use: script, command: [python, -c, \"open(r'{output}/x', 'w').write('x')\"]}\n"
        "  - {name: page, use: report, inputs: {anything: s}, title: My page}\n"
    )
    result = danlu.run(recipe, "page.language=zh", store=tmp_path / "home")
    html = (result.artifacts["page"].path / "report.html").read_text()
    assert "My page" in html
    assert result.id in html
    assert "page.language=zh" in html
