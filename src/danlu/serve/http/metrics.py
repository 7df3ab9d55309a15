"""Counters and histograms in Prometheus' text form, under the names vLLM's dashboards use with our prefix.

Knows nothing of requests; whoever handles one reports what happened to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from danlu.serve.engine.request import EngineStatus, ModelStatus

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Outcome = Literal["stop", "length", "tool_calls", "abort", "error"]
"""How an answer ended: as its finish reason says, with nobody waiting for it, or with an error."""


class Histogram:
    """Counts of values at or below each bound."""

    def __init__(self, bounds: Sequence[float], counts: Sequence[int] = (), total: float = 0.0) -> None:
        self._bounds = bounds
        self._counts = list(counts) or [0] * (len(bounds) + 1)
        self._sum = total

    @classmethod
    def from_cumulative(cls, bounds: Sequence[float], counts: Sequence[int], total: float) -> Histogram:
        """From counts of values at or below each bound, the last of all values."""
        return cls(bounds, [count - before for count, before in zip(counts, (0, *counts), strict=False)], total)

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, label: str) -> Iterator[str]:
        """The samples of one histogram."""
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            edge = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{name}_bucket{{{label},le="{edge}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum:.9g}"
        yield f"{name}_count{{{label}}} {total}"


@dataclass
class ModelMetrics:
    """What the HTTP side counts of one model, or of an adapter."""

    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_LONG_S))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(_SHORT_S))
    latency: Histogram = field(default_factory=lambda: Histogram(_LONG_S))
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    def finished(self, outcome: Outcome, seconds: float) -> None:
        """One answer ended, ``seconds`` after its request came."""
        self.outcomes[outcome] += 1
        self.latency.observe(seconds)


class Metrics:
    """What the HTTP side counts; ``render`` adds what the engine knows."""

    def __init__(self) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._responses: Counter[int] = Counter()

    def of(self, model: str) -> ModelMetrics:
        """The counters of a served name (never of whatever a client wrote)."""
        return self._models.setdefault(model, ModelMetrics())

    def responded(self, status: int) -> None:
        """One HTTP response started."""
        self._responses[status] += 1

    def render(self, status: EngineStatus) -> str:
        """Everything as text."""
        lines: list[str] = []

        def family(name: str, kind: str, description: str, samples: Iterable[str]) -> None:
            lines.extend((f"# HELP danlu:{name} {description}", f"# TYPE danlu:{name} {kind}", *samples))

        for name, kind, description, value in _OF_ENGINE:
            of_models = ((_label(model), value(numbers)) for model, numbers in status.models.items())
            family(name, kind, description, [f"danlu:{name}{{{label}}} {it:.12g}" for label, it in of_models])
        for name, description, histogram in _HISTOGRAMS_OF_ENGINE:
            of_models = ((_label(model), histogram(numbers)) for model, numbers in status.models.items())
            family(name, "histogram", description, _all_lines(name, of_models))
        for name, description, histogram in _HISTOGRAMS:
            here = ((_label(model), histogram(numbers)) for model, numbers in self._models.items())
            family(name, "histogram", description, _all_lines(name, here))
        finished = [
            f'danlu:request_success_total{{{_label(model)},finished_reason="{outcome}"}} {count}'
            for model, numbers in self._models.items()
            for outcome, count in sorted(numbers.outcomes.items())
        ]
        family("request_success_total", "counter", "Answers that ended, by reason.", finished)
        responses = [f'danlu:http_responses_total{{status="{k}"}} {v}' for k, v in sorted(self._responses.items())]
        family("http_responses_total", "counter", "HTTP responses, by status.", responses)
        age = f"danlu:engine_step_age_seconds {status.last_step_age_s:.6g}"
        family("engine_step_age_seconds", "gauge", "Seconds the scheduler has stood still with work to do.", [age])
        restarts = f"danlu:engine_restarts_total {status.restarts}"
        family("engine_restarts_total", "counter", "Times the engine had to be started again.", [restarts])
        parts = [
            f'danlu:engine_seconds_total{{{_label(model)},part="{part}"}} {seconds:.9g}'
            for model, numbers in status.models.items()
            for part, seconds in numbers.seconds.items()
        ]
        family("engine_seconds_total", "counter", "Time the engine spent, by part.", parts)
        return "\n".join(lines) + "\n"


def _label(model: str) -> str:
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'model_name="{escaped}"'


def _all_lines(name: str, histograms: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    for label, values in histograms:
        yield from values.lines(f"danlu:{name}", label)


def _batch_sizes(status: ModelStatus) -> Histogram:
    sizes = Histogram(_BATCH_SIZES)
    steps: Mapping[int, int] = status.steps_by_batch_size
    for size, times in steps.items():
        sizes.observe(size, times)
    return sizes


def _queue_waits(status: ModelStatus) -> Histogram:
    if not status.queue_counts:
        return Histogram(_LONG_S)
    return Histogram.from_cumulative(status.queue_waits_s, status.queue_counts, status.queue_total_s)


_OF_ENGINE: tuple[tuple[str, str, str, Callable[[ModelStatus], float]], ...] = (
    ("num_requests_running", "gauge", "Requests in the batch.", lambda s: s.running),
    ("num_requests_waiting", "gauge", "Requests in the queue.", lambda s: s.waiting),
    ("num_tokens_waiting", "gauge", "Prompt tokens in the queue.", lambda s: s.waiting_tokens),
    ("kv_cache_usage_perc", "gauge", "Share of the key/value cache in use, 0 to 1.", lambda s: s.cache_usage),
    ("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
     lambda s: s.prompt_tokens + s.cached_tokens),
    ("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", lambda s: s.cached_tokens),
    ("prompt_tokens_total", "counter", "Prompt tokens, cached ones counted.",
     lambda s: s.prompt_tokens + s.cached_tokens),
    ("generation_tokens_total", "counter", "Tokens written.", lambda s: s.generated_tokens),
    ("num_preemptions_total", "counter", "Requests that gave their pages back and started over.",
     lambda s: s.preemptions),
    ("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed by prompt lookup.", lambda s: s.drafted_tokens),
    ("spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that were right.",
     lambda s: s.accepted_tokens),
)  # fmt: skip
_HISTOGRAMS_OF_ENGINE: tuple[tuple[str, str, Callable[[ModelStatus], Histogram]], ...] = (
    ("request_queue_time_seconds", "Wait of a request before its first step.", _queue_waits),
    ("iteration_batch_size", "Requests in the batch of each decode step.", _batch_sizes),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelMetrics], Histogram]], ...] = (
    ("time_to_first_token_seconds", "From request to first piece.", lambda m: m.time_to_first_token),
    ("inter_token_latency_seconds", "Between two pieces of an answer.", lambda m: m.inter_token_latency),
    ("e2e_request_latency_seconds", "From request to last piece.", lambda m: m.latency),
)
