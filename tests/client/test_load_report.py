import numpy as np
import pytest

from danlu.client.load_report import Outcome, parse_promises, percentile, summarise
from danlu.core.errors import ConfigError


def answer(sent: float, stamps: list[float]) -> Outcome:
    ended, count = stamps[-1], len(stamps)
    return Outcome(model="m", sent_s=sent, stamps_s=stamps, ended_s=ended, input_tokens=10, output_tokens=count)


TWO = [answer(0.0, [0.1, 0.2, 0.3]), answer(1.0, [1.3, 1.5, 1.7, 2.0])]


def test_two_answers_have_the_latencies_that_arithmetic_gives() -> None:
    report = summarise(TWO, percentiles=(50.0, 100.0))
    assert (report.completed, report.failed, report.duration_s) == (2, 0, 2.0)
    assert (report.total_input_tokens, report.total_output_tokens) == (20, 7)
    assert report.output_throughput == pytest.approx(3.5)
    spreads = report.spreads
    assert spreads["ttft"].mean == pytest.approx(200.0)
    assert spreads["tpot"].mean == pytest.approx((100.0 + 700.0 / 3) / 2)
    assert spreads["itl"].median == pytest.approx(200.0)  # of 100, 100, 200, 200, 300
    assert spreads["itl"].percentiles[100.0] == pytest.approx(300.0)
    assert spreads["e2el"].mean == pytest.approx(650.0)
    assert spreads["ttft"].std == pytest.approx(100.0)


def test_names_of_the_json_are_those_of_vllm() -> None:
    found = summarise(TWO).to_json(with_requests=True)
    assert found["p99_ttft_ms"] == pytest.approx(298.0)
    assert {"duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput",
            "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
            "max_concurrent_requests", "mean_tpot_ms", "median_itl_ms", "std_e2el_ms", "ttfts", "itls", "input_lens",
            "output_lens", "generated_texts"} <= set(found)  # fmt: skip
    assert found["output_lens"] == [3, 4]


def test_a_good_request_keeps_every_promise() -> None:
    assert summarise(TWO, promises={"ttft": 150.0}).num_good == 1
    assert summarise(TWO, promises={"ttft": 301.0, "e2el": 1001.0}).num_good == 2
    assert summarise(TWO, promises={"ttft": 301.0, "tpot": 50.0}).num_good == 0
    assert summarise(TWO).num_good is None


def test_failures_are_counted_by_kind_and_measured_nowhere() -> None:
    refused = [Outcome(model="m", sent_s=t, ended_s=t + 9, failure="429", message=f"full at {t}") for t in (0.0, 1.0)]
    report = summarise([*TWO, *refused, Outcome(model="m", sent_s=0.5, ended_s=0.6, failure="timeout")])
    assert dict(report.failures) == {"429": 2, "timeout": 1}
    assert report.messages["429"] == "full at 0.0"
    assert (report.completed, report.spreads["e2el"].percentiles[99.0] < 1001.0) == (2, True)


def test_the_peak_is_of_the_best_second_and_of_the_most_at_once() -> None:
    report = summarise([answer(0.0, [0.5, 1.1, 1.2, 1.3, 2.5]), answer(0.0, [1.4, 3.0])])
    assert (report.peak_output_tokens_per_s, report.peak_concurrency) == (4.0, 2)
    assert summarise(TWO).peak_concurrency == 1


def test_nothing_measured_is_reported_as_nothing() -> None:
    report = summarise([])
    assert (report.completed, report.duration_s, report.output_throughput, dict(report.spreads)) == (0, 0.0, 0.0, {})


def test_percentiles_equal_those_of_numpy() -> None:
    values = sorted(np.random.default_rng(0).normal(size=37).tolist())
    for rank in (0, 1, 50, 95, 99, 100):
        assert percentile(values, rank) == pytest.approx(float(np.percentile(values, rank)))


@pytest.mark.parametrize(
    ("promise", "said"),
    [
        ("tfft:500", "goodput is 'tfft:500'. Write ttft:500. Did you mean 'ttft'?"),
        ("ttft:soon", "goodput is 'ttft:soon'. Write milliseconds, such as ttft:500."),
    ],
)
def test_a_promise_that_cannot_be_read_is_refused(promise: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_promises((promise,))
    assert str(caught.value) == said
