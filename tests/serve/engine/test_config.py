"""What the engine can be told, and the size of its cache."""

from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ConfigError, ResourceError
from danlu.serve.engine.config import EngineConfig, available_bytes, choose_cache_tokens

GIB = 2**30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_rows": 0}, r"max_rows is 0\. Use 1 or more\."),
        ({"max_waiting": 0}, r"max_waiting is 0\."),
        ({"step_tokens": -1}, r"step_tokens is -1\."),
        ({"cache_tokens": 0}, r"cache_tokens is 0\. Use 1 or more, or leave it out\."),
        ({"cache_type": "int4"}, r"cache_type is int4\. Use auto or int8\."),
        ({"threads": 0}, r"threads is 0\."),
        ({"max_resident_models": 0}, r"max_resident_models is 0\. Use 1 or more, or leave it out\."),
        ({"idle_unload_s": 0.0}, r"idle_unload_s is 0\.0\. Use more than 0\."),
        ({"request_timeout_s": 0}, r"request_timeout_s is 0\. Use more than 0\."),
        ({"grammar_timeout_s": float("nan")}, r"grammar_timeout_s is nan\."),
        ({"read_wait_ms": -1.0}, r"read_wait_ms is -1\.0\. Use 0 to 1000\."),
        (
            {"step_tokens": 32},
            r"step_tokens is 32, less than max_rows, 64\. .* raise step_tokens or lower max_rows\.",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


def test_the_cache_takes_a_quarter_of_the_available_memory():
    assert choose_cache_tokens(EngineConfig(), 8192, 10_000, 10**9) == 25_000


def test_the_cache_holds_no_more_than_every_row_is_likely_to_need():
    config = EngineConfig(max_rows=4)
    assert choose_cache_tokens(config, 1024, 10_000, 10**12) == 4 * 1024
    assert choose_cache_tokens(config, 8000, 10_000, 10**12) == 4 * 2048


def test_the_cache_holds_one_context_or_what_half_of_the_memory_holds():
    config = EngineConfig(max_rows=4)
    assert choose_cache_tokens(config, 32_768, 10_000, 10**9) == 32_768
    assert choose_cache_tokens(config, 131_072, 10_000, 10**9) == 50_000


def test_a_cache_of_given_size_is_of_that_size():
    assert choose_cache_tokens(EngineConfig(cache_tokens=500), 8192, 10_000, 10**9) == 500


def test_a_model_without_attention_has_room_for_every_row():
    assert choose_cache_tokens(EngineConfig(max_rows=2), 100, 0, 0) == 200


def test_a_cache_that_does_not_fit_is_refused_with_one_that_does():
    with pytest.raises(
        ResourceError, match=r"cache_tokens is 9000000, which takes 8,583 MiB; 1,024 MiB are available\. Use 268435 or"
    ):
        choose_cache_tokens(EngineConfig(cache_tokens=9_000_000), 8192, 1000, GIB)
    with pytest.raises(ResourceError, match=r"memory for a key/value cache of 400 tokens, 4 MiB\. Free memory"):
        choose_cache_tokens(EngineConfig(), 131_072, 10_000, 4_000_000)


def machine(folder: Path, group: str = "", **files: str) -> Path:
    """A root folder that says so much memory is left: 8 GiB, and what the control group says."""
    (folder / "proc").mkdir()
    (folder / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    path = folder / "sys/fs/cgroup" / group
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_the_memory_left_is_what_the_system_or_the_control_group_leaves(tmp_path: Path):
    for name in ("none", "unlimited", "two", "one"):
        (tmp_path / name).mkdir()
    stat = f"anon 5\ninactive_file {GIB}"
    limits = {"memory__max": str(4 * GIB), "memory__current": str(3 * GIB), "memory__stat": stat}
    old = {"memory__limit_in_bytes": str(4 * GIB), "memory__usage_in_bytes": str(3 * GIB), "memory__stat": stat}
    assert available_bytes(machine(tmp_path / "none")) == 8 * GIB
    assert available_bytes(machine(tmp_path / "unlimited", **{**limits, "memory__max": "max"})) == 8 * GIB
    assert available_bytes(machine(tmp_path / "two", **limits)) == 2 * GIB
    assert available_bytes(machine(tmp_path / "one", "memory", **old)) == 2 * GIB


def test_this_machine_has_memory_left():
    assert available_bytes() > 2**20
