"""Our settings in vLLM's words."""

from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, ResourceError
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import AdapterRequest
from danlu.serve.engine.spec import EngineSpec, ModelSpec
from danlu.serve.http.config import HttpConfig
from danlu.serve.vllm import find_vllm, vllm_arguments, vllm_environment

MODEL = ModelSpec(name="m", path="/models/m")


def arguments(http: HttpConfig | None = None, model: ModelSpec = MODEL, **engine: object) -> list[str]:
    adapters = engine.pop("adapters", ())
    spec = EngineSpec(models=(model,), adapters=adapters, config=EngineConfig(**engine))  # pyright: ignore
    return vllm_arguments(spec, http or HttpConfig())


def test_plain_settings_say_only_what_must_be_said() -> None:
    words = ["serve", "/models/m", "--served-model-name", "m", "--host", "127.0.0.1", "--port", "8000"]
    assert arguments() == words


def test_settings_with_a_counterpart_are_translated() -> None:
    adapters = tuple(AdapterRequest(action="load", name=name, folder=f"/{name}") for name in "ab")
    model = ModelSpec(name="m", path="/models/m", precision="bf16")
    words = arguments(model=model, adapters=adapters, max_rows=8, step_tokens=64, prefix_cache=False)
    assert " ".join(words[8:]) == (
        "--dtype bfloat16 --max-num-seqs 8 --max-num-batched-tokens 64 --no-enable-prefix-caching "
        "--enable-lora --lora-modules a=/a b=/b"
    )


def test_the_key_is_not_among_the_arguments() -> None:
    http = HttpConfig(api_key="SECRET")
    assert "SECRET" not in " ".join(arguments(http))
    assert vllm_environment(http) == {"VLLM_API_KEY": "SECRET"}
    assert vllm_environment(HttpConfig()) == {}


def test_settings_without_a_counterpart_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_waiting, ping_s cannot be set with --engine vllm"):
        arguments(HttpConfig(ping_s=3.0), max_waiting=4)
    with pytest.raises(ConfigError, match="--scheme int8 has no counterpart in vLLM"):
        arguments(model=ModelSpec(name="m", path="x", scheme="int8"))
    two = EngineSpec(models=(MODEL, ModelSpec(name="n", path="y")))
    with pytest.raises(ConfigError, match=r"2 models are given; vllm serve takes one. Start one for each."):
        vllm_arguments(two, HttpConfig())


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match=r"vLLM is not installed: .*pip install vllm.*or leave --engine vllm out"):
        find_vllm()
    program = tmp_path / "vllm"
    program.write_text("")
    program.chmod(0o755)
    assert find_vllm() == [str(program)]
