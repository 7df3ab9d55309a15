"""What a person can set about the engine, and how large its cache becomes when nobody says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from danlu.core.errors import ConfigError, ResourceError

_CACHE_SHARE = 0.25
"""Share of the available memory that the cache may take when its size is not given."""
_CONTEXT_SHARE = 0.5
"""Share that it may take for the sake of one full context."""
_LIKELY_TOKENS = 2048
"""Tokens that prompt and answer seldom exceed: more for every answer would only keep old prompts for longer."""
_FEWEST_TOKENS = 256
_COUNTS = (
    "max_rows", "max_waiting", "max_waiting_tokens", "step_tokens", "read_tokens", "max_grammar_bytes", "max_adapters",
)  # fmt: skip
_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where control groups tell their limits: folder, limit and usage, version 2 and 1."""
_SECONDS = ("request_timeout_s", "grammar_timeout_s", "idle_unload_s")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much the engine does at once."""

    max_rows: int = 64
    """Answers written at the same time."""
    max_waiting: int = 256
    """Requests that may queue; more are refused with 429. Tenants get equal shares of a full queue."""
    max_waiting_tokens: int = 65_536
    """Prompt tokens that may queue; more are refused with 429, but one request alone may be longer."""
    step_tokens: int = 512
    """Tokens of one step: every answer's next one, then prompts piece by piece. Less makes a steadier stream, more
    reads prompts faster."""
    cache_tokens: int | None = None
    """Tokens that the key/value cache holds, all answers together; none for 2,048 for each of ``max_rows``, as long as
    that is a quarter of the available memory, but at least one full context, or half of it. Memory is taken as tokens
    come; prompts that are used no more stay in it until the room is needed."""
    cache_type: Literal["auto", "int8"] = "auto"
    """Numbers of the key/value cache: those of the model's activations, or 8 bits in half of bf16's memory, a step for
    each token and head."""
    prefix_cache: bool = True
    """Whether what prompts of one tenant begin with is computed once."""
    speculation: bool = True
    """Whether text that repeats is guessed and checked several tokens at a time, where that was measured faster."""
    threads: int | None = None
    """Threads that compute; none for what is fastest here, by a short measurement at the start."""
    request_timeout_s: float = 600.0
    """Longest time for a request that sets no time limit of its own, its wait in the queue counted."""
    read_tokens: int = 2048
    """Tokens of texts to embed, classify, tag or score that are read in one pass."""
    read_wait_ms: float = 3.0
    """Longest time such a text waits for others to be read with; a full pass does not wait."""
    max_grammar_bytes: int = 65_536
    """Longest schema, expression or grammar that an answer may be held to."""
    grammar_timeout_s: float = 2.0
    """Longest time to compile one."""
    max_resident_models: int | None = None
    """Models in memory at the same time; others are loaded when they are asked for, in place of the one that was not
    used for the longest. None for as many as memory holds."""
    idle_unload_s: float | None = None
    """Unload a model that was not used for so long; the next request loads it again. None keeps it until its room is
    needed."""
    max_adapters: int = 8
    """LoRA adapters that are loaded at once."""
    max_adapter_rank: int = 64
    """Largest rank of one."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.cache_type not in ("auto", "int8"):
            raise ConfigError(f"cache_type is {self.cache_type}.", "Use auto or int8.")
        for name in ("cache_tokens", "threads", "max_resident_models"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more, or leave it out.")
        for name in _SECONDS:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use more than 0.")
        if not 1 <= self.max_adapter_rank <= 256:
            raise ConfigError(f"max_adapter_rank is {self.max_adapter_rank}.", "Use 1 to 256.")
        if not 0 <= self.read_wait_ms <= 1000:
            raise ConfigError(f"read_wait_ms is {self.read_wait_ms}.", "Use 0 to 1000.")
        if self.step_tokens < self.max_rows:
            raise ConfigError(
                f"step_tokens is {self.step_tokens}, less than max_rows, {self.max_rows}.",
                "Every answer takes a token of each step, so raise step_tokens or lower max_rows.",
            )


def choose_cache_tokens(config: EngineConfig, context_length: int, bytes_per_token: int, available_bytes: int) -> int:
    """Tokens of the key/value cache of a model whose tokens take ``bytes_per_token`` each in all its layers together.

    Fewer than a context when that would take more than half of the available memory. Raises ResourceError when the
    memory cannot hold ``cache_tokens``, or next to nothing.
    """
    if bytes_per_token == 0:
        return config.cache_tokens or config.max_rows * context_length
    fits = available_bytes // bytes_per_token
    if config.cache_tokens is not None:
        if config.cache_tokens > fits:
            size = mebibytes(config.cache_tokens * bytes_per_token)
            raise ResourceError(
                f"cache_tokens is {config.cache_tokens}, which takes {size} MiB; "
                f"{mebibytes(available_bytes)} MiB are available.",
                f"Use {max(1, int(fits * _CACHE_SHARE))} or less.",
            )
        return config.cache_tokens
    tokens = min(int(fits * _CACHE_SHARE), config.max_rows * min(context_length, _LIKELY_TOKENS))
    tokens = max(tokens, min(context_length, int(fits * _CONTEXT_SHARE)))
    if tokens < min(context_length, _FEWEST_TOKENS):
        raise ResourceError(
            f"There is memory for a key/value cache of {fits} tokens, {mebibytes(available_bytes)} MiB.",
            "Free memory, serve a smaller model or fewer of them, or set cache_tokens.",
        )
    return tokens


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take: what the system has left, or its control group if that is less."""
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no Linux: half of what is built in
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    left = int(fields["MemAvailable"].split()[0]) * 1024
    for folder, limit, usage in _GROUPS:
        paths = [root / folder / name for name in (limit, usage, "memory.stat")]
        if all(path.is_file() for path in paths):
            most, used, stat = (path.read_text().strip() for path in paths)
            files = dict(line.split() for line in stat.splitlines()).get("inactive_file", "0")
            if most != "max":
                left = min(left, max(0, int(most) - int(used) + int(files)))  # unused file pages are given back
    return left


def mebibytes(size: int) -> str:
    """For messages."""
    return f"{size / 2**20:,.0f}"
