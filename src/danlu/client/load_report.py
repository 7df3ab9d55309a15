"""What a load test found, under the names of ``vllm bench serve``. Knows times and counts; nothing of requests."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from danlu.core.errors import ConfigError, nearest

Measure = Literal["ttft", "tpot", "itl", "e2el"]
TITLES: dict[Measure, str] = {
    "ttft": "Time to first token", "tpot": "Time per output token (excl. 1st)",
    "itl": "Inter-token latency", "e2el": "End-to-end latency",
}  # fmt: skip


@dataclass(kw_only=True)
class Outcome:
    """One request and how it went; times are ``time.perf_counter()``."""

    model: str
    sent_s: float
    ended_s: float = 0.0
    stamps_s: list[float] = field(default_factory=list[float])
    """When each piece of the answer came."""
    input_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the server had read before."""
    output_tokens: int = 0
    failure: str = ""
    """Empty when it was answered; else the HTTP status, or "timeout", "connection", "broken"."""
    message: str = ""
    """What the server said about the failure."""
    text: str = ""
    is_valid: bool | None = None
    """Whether the answer is JSON, when a schema was asked for."""

    def times_s(self) -> dict[Measure, list[float]]:
        """Latencies in seconds: one, none, or between pieces many."""
        stamps, total = self.stamps_s, self.ended_s - self.sent_s
        found: dict[Measure, list[float]] = {"ttft": [], "tpot": [], "itl": [], "e2el": [total]}
        if stamps:
            first = stamps[0] - self.sent_s
            found["ttft"] = [first]
            found["itl"] = [after - before for before, after in itertools.pairwise(stamps)]
            if self.output_tokens > 1:
                found["tpot"] = [(total - first) / (self.output_tokens - 1)]
        return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How one latency was distributed, in milliseconds."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a load test."""

    completed: int
    """Requests that were answered whole."""
    failures: Mapping[str, int]
    """Other requests by HTTP status or kind."""
    messages: Mapping[str, str]
    """What the server said about the first failure of each kind."""
    duration_s: float
    """From the first request sent to the last answer."""
    total_input_tokens: int
    total_cached_tokens: int
    total_output_tokens: int
    num_good: int | None
    """Requests that met every promised latency; None when none was promised."""
    num_valid: int | None
    """Answers that are JSON; None when no schema was asked for."""
    peak_output_tokens_per_s: float
    """Most tokens that came within one second."""
    peak_concurrency: int
    """Most requests that were under way at once."""
    spreads: Mapping[Measure, Spread]
    is_interrupted: bool = False
    """Whether the test was stopped before its end; requests under way then count nowhere."""
    outcomes: Sequence[Outcome] = field(default=(), repr=False)

    @property
    def failed(self) -> int:
        """Requests that were not answered whole."""
        return sum(self.failures.values())

    def per_s(self, count: float) -> float:
        """``count`` over the duration."""
        return count / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def output_throughput(self) -> float:
        """Tokens written a second."""
        return self.per_s(self.total_output_tokens)

    def to_json(self, *, with_requests: bool = False) -> dict[str, object]:
        """Plain values under vLLM's names; ``with_requests`` adds one entry a request."""
        found: dict[str, object] = {
            "duration": self.duration_s, "completed": self.completed, "failed": self.failed,
            "failures": dict(self.failures), "failure_messages": dict(self.messages),
            "is_interrupted": self.is_interrupted, "total_input_tokens": self.total_input_tokens,
            "total_cached_tokens": self.total_cached_tokens, "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.per_s(self.completed),
            "request_goodput": None if self.num_good is None else self.per_s(self.num_good),
            "valid_json": self.num_valid, "output_throughput": self.output_throughput,
            "total_token_throughput": self.per_s(self.total_input_tokens + self.total_output_tokens),
            "max_output_tokens_per_s": self.peak_output_tokens_per_s, "max_concurrent_requests": self.peak_concurrency,
        }  # fmt: skip
        for name, spread in self.spreads.items():
            found |= {f"mean_{name}_ms": spread.mean, f"median_{name}_ms": spread.median, f"std_{name}_ms": spread.std}
            found |= {f"p{rank:g}_{name}_ms": value for rank, value in spread.percentiles.items()}
        if with_requests:
            good = [outcome for outcome in self.outcomes if not outcome.failure]
            times = [outcome.times_s() for outcome in good]
            found |= {
                "input_lens": [outcome.input_tokens for outcome in good],
                "output_lens": [outcome.output_tokens for outcome in good],
                "ttfts": [value for each in times for value in each["ttft"]],
                "itls": [each["itl"] for each in times], "e2els": [value for each in times for value in each["e2el"]],
                "models": [outcome.model for outcome in good], "generated_texts": [outcome.text for outcome in good],
            }  # fmt: skip
        return found

    def rows(self) -> list[tuple[str, str, str]]:
        """Section, name and value of each line a person reads."""
        found = [
            ("", "Successful requests", f"{self.completed:,}"),
            ("", "Failed requests", f"{self.failed:,}"),
            *(("", f"  failed: {kind}", f"{count:,}") for kind, count in sorted(self.failures.items())),
            ("", "Benchmark duration (s)", f"{self.duration_s:.2f}"),
            ("", "Total input tokens", f"{self.total_input_tokens:,}"),
            ("", "  of which cached", f"{self.total_cached_tokens:,}"),
            ("", "Total generated tokens", f"{self.total_output_tokens:,}"),
            ("", "Request throughput (req/s)", f"{self.per_s(self.completed):.2f}"),
        ]
        if self.num_good is not None:
            found.append(("", "Request goodput (req/s)", f"{self.per_s(self.num_good):.2f}"))
        if self.num_valid is not None:
            found.append(("", "Answers that are JSON", f"{self.num_valid:,}"))
        total = self.per_s(self.total_input_tokens + self.total_output_tokens)
        found += [
            ("", "Output token throughput (tok/s)", f"{self.output_throughput:.2f}"),
            ("", "Peak output token throughput (tok/s)", f"{self.peak_output_tokens_per_s:.2f}"),
            ("", "Peak concurrent requests", f"{self.peak_concurrency:,}"),
            ("", "Total token throughput (tok/s)", f"{total:.2f}"),
        ]
        for name, spread in self.spreads.items():
            lines = {"Mean": spread.mean, "Median": spread.median}
            lines |= {f"P{rank:g}": value for rank, value in spread.percentiles.items()}
            found += [(TITLES[name], f"{what} {name.upper()} (ms)", f"{value:.2f}") for what, value in lines.items()]
        return found


def parse_promises(promises: Sequence[str]) -> dict[Measure, float]:
    """("ttft:500", "tpot:50") as milliseconds; raises ConfigError for anything else."""
    found: dict[Measure, float] = {}
    for promise in promises:
        name, _, value = promise.partition(":")
        known: list[Measure] = [measure for measure in TITLES if measure == name and measure != "itl"]
        if not known:
            raise ConfigError(f"goodput is {promise!r}.", f"Write ttft:500. {nearest(name, ('ttft', 'tpot', 'e2el'))}")
        try:
            limit_ms = float(value)
        except ValueError as error:
            raise ConfigError(f"goodput is {promise!r}.", f"Write milliseconds, such as {name}:500.") from error
        found[known[0]] = limit_ms
    return found


def percentile(ordered: Sequence[float], rank: float) -> float:
    """Of ascending numbers, on a straight line between neighbours."""
    place = (len(ordered) - 1) * rank / 100.0
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(
    outcomes: Sequence[Outcome],
    *,
    promises: Mapping[Measure, float] | None = None,
    percentiles: Sequence[float] = (95.0, 99.0),
    is_interrupted: bool = False,
) -> Report:
    """The report of these requests; ``promises`` are the latencies in milliseconds that a good request keeps."""
    done = [outcome for outcome in outcomes if not outcome.failure]
    times = [outcome.times_s() for outcome in done]
    spreads: dict[Measure, Spread] = {}
    for name in TITLES:
        values = sorted(1000.0 * value for each in times for value in each[name])
        if values:
            spreads[name] = Spread(
                mean=statistics.fmean(values), median=percentile(values, 50.0), std=statistics.pstdev(values),
                percentiles={rank: percentile(values, rank) for rank in percentiles},
            )  # fmt: skip
    messages: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.failure:
            messages.setdefault(outcome.failure, outcome.message)
    checked = [outcome.is_valid for outcome in done if outcome.is_valid is not None]
    return Report(
        completed=len(done),
        failures=Counter(outcome.failure for outcome in outcomes if outcome.failure),
        messages=messages,
        duration_s=max(o.ended_s for o in outcomes) - min(o.sent_s for o in outcomes) if outcomes else 0.0,
        total_input_tokens=sum(outcome.input_tokens for outcome in done),
        total_cached_tokens=sum(outcome.cached_tokens for outcome in done),
        total_output_tokens=sum(outcome.output_tokens for outcome in done),
        num_good=sum(_keeps(each, promises) for each in times) if promises else None,
        num_valid=sum(checked) if checked else None,
        peak_output_tokens_per_s=_peak_rate(done),
        peak_concurrency=_peak_concurrency(outcomes),
        spreads=spreads,
        is_interrupted=is_interrupted,
        outcomes=outcomes,
    )


def _keeps(times: Mapping[Measure, Sequence[float]], promises: Mapping[Measure, float]) -> bool:
    return all(1000.0 * value <= limit for name, limit in promises.items() for value in times[name])


def _peak_rate(outcomes: Sequence[Outcome]) -> float:
    """Tokens of the best whole second; each piece of an answer stands for as many tokens as any other."""
    tokens: dict[int, float] = {}
    start = min((outcome.sent_s for outcome in outcomes), default=0.0)
    for outcome in outcomes:
        if outcome.stamps_s:
            share = outcome.output_tokens / len(outcome.stamps_s)
            for second, count in Counter(int(stamp - start) for stamp in outcome.stamps_s).items():
                tokens[second] = tokens.get(second, 0.0) + share * count
    return max(tokens.values(), default=0.0)


def _peak_concurrency(outcomes: Sequence[Outcome]) -> int:
    changes = sorted([(o.sent_s, 1) for o in outcomes] + [(o.ended_s, -1) for o in outcomes])
    running = peak = 0
    for _, change in changes:
        running += change
        peak = max(peak, running)
    return peak
