"""The load test of any OpenAI-compatible server: closed loop (so many at once) or open loop (random arrivals).

``run_load`` sends the jobs and reports; what is sent is load_prompts', how it is read load_ask's, what comes of it
load_report's.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from danlu.client.load_ask import AskConfig, Endpoint, ask_job, refusal
from danlu.client.load_prompts import CountTokens, Job, PromptConfig, draw_jobs
from danlu.client.load_report import Outcome, Report, parse_promises, summarise
from danlu.client.load_wire import Pool
from danlu.core.errors import ConfigError, RequestError

OnOutcome = Callable[[Outcome], None]
"""Called with each finished request."""


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """One load test."""

    models: tuple[str, ...] = ()
    """Models (or adapters) that requests name in turn; the first one that the server lists if left out."""
    num_requests: int = 64
    """Requests to send; conversations are not cut."""
    concurrency: tuple[int, ...] = ()
    """Requests under way at once, the next sent after an answer; several are tried in turn. With a rate: at most."""
    rate: tuple[float, ...] = ()
    """Requests (or conversations) that arrive in a second, at random moments; several are tried in turn."""
    burstiness: float = 1.0
    """Shape of the gamma-distributed gaps between arrivals: 1 for a Poisson process, below 1 for bursts."""
    duration_s: float | None = None
    """Longest time in which requests are sent."""
    num_warmups: int = 1
    """Requests sent before and not counted; the first one that fails ends the test."""
    seed: int = 0
    """Draws prompts and arrivals."""
    goodput: tuple[str, ...] = ()
    """Latencies in milliseconds that a good request keeps: ttft:500 tpot:50 e2el:5000."""
    percentiles: tuple[float, ...] = (95.0, 99.0)
    """Percentiles to tell of each latency."""
    wait_s: float = 0.0
    """Longest time to wait for the server to answer at all."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """What is asked."""
    ask: AskConfig = field(default_factory=AskConfig)
    """How it is asked."""

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ConfigError(f"num_requests is {self.num_requests}.", "Use 1 or more.")
        for value in self.concurrency:
            if value < 1:
                raise ConfigError(f"concurrency is {value}.", "Use 1 or more.")
        if self.rate and len(self.concurrency) > 1:
            raise ConfigError(f"concurrency is {self.concurrency} with a rate.", "Give one limit, or no rate.")
        limits = [("rate", value) for value in self.rate] + [("burstiness", self.burstiness)]
        for name, value in [*limits, ("duration_s", self.duration_s)]:
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}.", "Use more than 0.")
        if self.num_warmups < 0:
            raise ConfigError(f"num_warmups is {self.num_warmups}.", "Use 0 or more.")
        if not all(0 <= rank <= 100 for rank in self.percentiles):
            raise ConfigError(f"percentiles are {self.percentiles}.", "Use 0 to 100.")
        if self.prompts.turns > 1 and self.ask.endpoint != "chat":
            raise ConfigError(f"turns is {self.prompts.turns} on {self.ask.endpoint}.", "Conversations need chat.")
        if self.prompts.batch > 1 and self.ask.endpoint != "embeddings":
            raise ConfigError(f"batch is {self.prompts.batch} on {self.ask.endpoint}.", "Batches are for embeddings.")
        parse_promises(self.goodput)

    def levels(self) -> list[Level]:
        """What is measured, one after the other."""
        most = self.concurrency[0] if self.concurrency else None
        if self.rate:
            return [Level(rate=rate, concurrency=most) for rate in self.rate]
        return [Level(concurrency=concurrency) for concurrency in self.concurrency or (1,)]


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard the server is pressed."""

    rate: float | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        limit = f" of at most {self.concurrency}" if self.rate and self.concurrency else ""
        return f"{self.rate:g} req/s{limit}" if self.rate else f"concurrency {self.concurrency}"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokens(msgspec.Struct):
    count: int | None = None
    tokens: list[msgspec.Raw] | None = None


OnLevel = Callable[[Level], OnOutcome]
"""Called as a level begins; what it returns hears of its requests."""


async def run_load(
    url: str, config: LoadConfig, *, api_key: str | None = None, on_level: OnLevel | None = None
) -> list[tuple[Level, Report]]:  # fmt: skip
    """Send the requests of every level and report. Raises RequestError when the server cannot be reached or refuses a
    warm-up.

    A cancelled test (Ctrl-C) drops what is under way and reports the rest, marked so.
    """
    pool = Pool(url, {"authorization": f"Bearer {api_key}"} if api_key else {})
    reports: list[tuple[Level, Report]] = []
    try:
        models = config.models or (await first_model(pool, url, config.wait_s),)
        count = await token_counter(pool, models[0], config.ask.endpoint)
        warmups = await draw_jobs(config.prompts, config.num_warmups, count, f"warm-up {config.seed}")
        for job in warmups:
            await _warm_up(pool, url, config.ask, replace(job, follow_ups=()), models[0])
        num_jobs = -(-config.num_requests // config.prompts.turns)
        for number, level in enumerate(config.levels()):  # no level is helped by prompts that another one sent
            jobs = await draw_jobs(config.prompts, num_jobs, count, f"{config.seed} {number}")
            report = await _Load(pool, config, level, models, on_level(level) if on_level else None).run(jobs)
            reports.append((level, report))
            if report.is_interrupted:
                break
    finally:
        pool.close()
    return reports


class _Load:
    """One level under way."""

    def __init__(
        self, pool: Pool, config: LoadConfig, level: Level, models: Sequence[str], on_outcome: OnOutcome | None
    ) -> None:  # fmt: skip
        self._pool, self._config, self._level, self._on_outcome = pool, config, level, on_outcome
        self._fields = config.ask.more_fields()
        self._models = itertools.cycle(models)
        self._outcomes: list[Outcome] = []
        self._end_s = time.perf_counter() + (config.duration_s or float("inf"))

    async def run(self, jobs: Sequence[Job]) -> Report:
        is_interrupted = False
        try:
            async with asyncio.TaskGroup() as group:
                if self._level.rate is None:
                    waiting = iter(jobs)
                    for _ in range(min(self._level.concurrency or 1, len(jobs))):
                        group.create_task(self._work(waiting))
                else:
                    await self._arrive(group, jobs, self._level.rate)
        except asyncio.CancelledError:
            is_interrupted = True
        return summarise(
            self._outcomes, promises=parse_promises(self._config.goodput), percentiles=self._config.percentiles,
            is_interrupted=is_interrupted,
        )  # fmt: skip

    async def _work(self, waiting: Iterator[Job]) -> None:
        """Closed loop: the next job when the last one is answered."""
        for job in waiting:
            if time.perf_counter() >= self._end_s:
                return
            await self._do(job)

    async def _arrive(self, group: asyncio.TaskGroup, jobs: Sequence[Job], rate: float) -> None:
        """Open loop: jobs come when they come."""
        draw = random.Random(f"arrivals {self._config.seed}")
        shape, places = self._config.burstiness, asyncio.Semaphore(self._level.concurrency or len(jobs))

        async def one(job: Job) -> None:
            async with places:
                await self._do(job)

        due_s = time.perf_counter()
        for job in jobs:
            if due_s >= self._end_s:
                return
            await asyncio.sleep(due_s - time.perf_counter())
            group.create_task(one(job))
            due_s += draw.gammavariate(shape, 1.0 / (rate * shape))

    async def _do(self, job: Job) -> None:
        for outcome in await ask_job(self._pool, self._config.ask, job, next(self._models), self._fields):
            self._outcomes.append(outcome)
            if self._on_outcome is not None:
                self._on_outcome(outcome)


async def first_model(pool: Pool, url: str, wait_s: float) -> str:
    """The first model that the server lists, once it answers; raises RequestError when it does not."""
    end_s = time.monotonic() + wait_s
    while True:
        try:
            answer = await pool.ask("GET", "/v1/models")
        except OSError as error:
            if time.monotonic() >= end_s:
                raise RequestError(
                    f"No server answers at {url} ({error}).", "Start it, or give its address.", status=503
                ) from error
        else:
            if answer.status == 200:
                break
            if answer.status != 503 or time.monotonic() >= end_s:
                hint = "Give --api-key." if answer.status in (401, 403) else "Check the address, or give --models."
                raise RequestError(
                    f"{url} does not list its models (HTTP {answer.status}): {refusal(answer.body)[:200]}", hint,
                    status=answer.status,
                )  # fmt: skip
        await asyncio.sleep(0.1)
    try:
        return msgspec.json.decode(answer.body, type=_Models).data[0].id
    except (msgspec.DecodeError, IndexError) as error:
        raise RequestError(f"{url} lists no model.", "Check the address, or give --models.", status=502) from error


async def token_counter(pool: Pool, model: str, endpoint: Endpoint) -> CountTokens | None:
    """How the server counts a prompt's tokens, those of the chat template included; None when it does not tell."""

    async def ask(body: dict[str, object]) -> int:
        try:
            answer = await pool.ask("POST", "/tokenize", msgspec.json.encode(body))
            tokens = msgspec.json.decode(answer.body, type=_Tokens) if answer.status == 200 else _Tokens()
        except (OSError, msgspec.DecodeError):
            return 0
        return tokens.count or len(tokens.tokens or ())

    def counter(body: Callable[[str], dict[str, object]]) -> CountTokens:
        async def count(text: str) -> int:
            return max(1, await ask(body(text)))

        return count

    forms: list[Callable[[str], dict[str, object]]] = [
        lambda text: {"model": model, "messages": [{"role": "user", "content": text}]},
        lambda text: {"model": model, "prompt": text, "add_special_tokens": True},
        lambda text: {"content": text, "add_special": True},  # llama.cpp's words
    ]
    for form in forms if endpoint == "chat" else forms[1:]:
        if await ask(form("time")):
            return counter(form)
    return None


async def _warm_up(pool: Pool, url: str, config: AskConfig, job: Job, model: str) -> None:
    outcome = (await ask_job(pool, config, job, model))[0]
    if outcome.failure:
        status = int(outcome.failure) if outcome.failure.isdecimal() else 503
        raise RequestError(
            f"{url} did not answer the first request ({outcome.failure}): {outcome.message}",
            "Mend that, or warm up with --num-warmups 0.", status=status,
        )  # fmt: skip
