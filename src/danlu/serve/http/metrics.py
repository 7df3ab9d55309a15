"""Counters and histograms in Prometheus' text form, under the names vLLM's dashboards use with our prefix.

Knows nothing of requests; whoever handles one reports what happened to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from danlu.core.records import FinishReason
from danlu.serve.engine.request import EngineStatus

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts of values at or below each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

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


class Metrics:
    """What the HTTP side counts; ``render`` adds what the engine knows."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(_LONG_S)
        self.inter_token_latency = Histogram(_SHORT_S)
        self._latency = Histogram(_LONG_S)
        self._finished: Counter[FinishReason] = Counter()
        self._responses: Counter[int] = Counter()

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """One answer ended, ``seconds`` after its request came."""
        self._finished[reason] += 1
        self._latency.observe(seconds)

    def responded(self, status: int) -> None:
        """One HTTP response started."""
        self._responses[status] += 1

    def render(self, model: str, status: EngineStatus) -> str:
        """Everything as text."""
        escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        label = f'model_name="{escaped}"'
        lines: list[str] = []

        def family(name: str, kind: str, description: str, samples: Iterator[str]) -> None:
            lines.extend((f"# HELP danlu:{name} {description}", f"# TYPE danlu:{name} {kind}", *samples))

        def one(name: str, kind: str, description: str, value: float) -> None:
            family(name, kind, description, iter((f"danlu:{name}{{{label}}} {value:.12g}",)))

        def counts(name: str, key: str, values: Mapping[FinishReason, int] | Mapping[int, int]) -> Iterator[str]:
            return (f'danlu:{name}{{{label},{key}="{k}"}} {v}' for k, v in sorted(values.items()))

        def histogram(name: str, description: str, values: Histogram) -> None:
            family(name, "histogram", description, values.lines(f"danlu:{name}", label))

        one("num_requests_running", "gauge", "Requests being generated.", status.running)
        one("num_requests_waiting", "gauge", "Requests in the queue.", status.waiting)
        one("kv_cache_usage_perc", "gauge", "Share of the key/value cache in use, 0 to 1.", status.cache_usage)
        one("engine_step_age_seconds", "gauge", "Seconds the scheduler has stood still.", status.last_step_age_s)
        one("prompt_tokens_total", "counter", "Prompt tokens read.", status.prompt_tokens)
        one("generation_tokens_total", "counter", "Tokens written.", status.generated_tokens)
        finished = counts("request_success_total", "finished_reason", self._finished)
        family("request_success_total", "counter", "Answers that ended, by reason.", finished)
        responses = counts("http_responses_total", "status", self._responses)
        family("http_responses_total", "counter", "HTTP responses, by status.", responses)
        histogram("time_to_first_token_seconds", "From request to first piece.", self.time_to_first_token)
        histogram("inter_token_latency_seconds", "Between two pieces of an answer.", self.inter_token_latency)
        histogram("e2e_request_latency_seconds", "From request to last piece.", self._latency)
        batch = Histogram(_BATCH_SIZES)
        for size, steps in status.steps_by_batch_size.items():
            batch.observe(size, steps)
        histogram("iteration_batch_size", "Requests in the batch of each engine step.", batch)
        return "\n".join(lines) + "\n"
