"""An engine is started as asked, and the printed lines are for what the model does."""

import ast
import json
import shlex
import socket
import sys
from pathlib import Path

import pytest

from danlu.core.config import from_mapping
from danlu.core.errors import ModelError, ResourceError
from danlu.core.events import Events
from danlu.flow.serving import lines_to_try, serve_models, start_engine
from danlu.flow.stages.serve import ServeConfig
from danlu.serve.engine import process
from danlu.serve.engine.remote import RemoteEngine
from danlu.serve.engine.request import Ability, AdapterRequest, ServedModel
from danlu.serve.engine.spec import EngineSpec, ModelSpec
from danlu.serve.http.config import HttpConfig
from tests.serve.engine.fake_engine import FakeEngine, build

FAKE = [sys.executable, str(Path(__file__).parents[1] / "serve" / "engine" / "fake_engine.py")]


def spec(path: str = "x", adapter: str = "here") -> EngineSpec:
    adapters = (AdapterRequest(action="load", name="mine", folder=adapter),)
    return EngineSpec(models=(ModelSpec(name="fake", path=path),), adapters=adapters)


def lines(*abilities: Ability, chats: bool = False, has_key: bool = False, images: bool = False) -> tuple[str, str]:
    model = ServedModel(name="m", abilities=frozenset(abilities), context_length=8, takes_images=images)
    curl, python = lines_to_try("http://h:1", model, "It's $5 \n丹", can_chat=chats, has_key=has_key)
    return curl, python


@pytest.mark.parametrize(
    ("abilities", "chats", "route", "key"),
    [
        (("write", "embed"), True, "/v1/chat/completions", "messages"),
        (("write",), False, "/v1/completions", "prompt"),
        (("embed", "score"), False, "/v1/embeddings", "input"),
        (("classify",), False, "/predict", "text"),
        (("tag",), False, "/v1/tag", "input"),
        (("score",), False, "/v1/rerank", "query"),
    ],
)
def test_the_lines_are_for_what_the_model_does(
    abilities: tuple[Ability, ...], chats: bool, route: str, key: str
) -> None:
    curl, python = lines(*abilities, chats=chats)
    words = shlex.split(curl)
    assert words[1] == f"http://h:1{route}"
    assert key in json.loads(words[-1])
    assert "It's $5" in json.dumps(json.loads(words[-1]))
    program = shlex.split(python)[-1]
    ast.parse(program)
    assert ("openai" in program) == route.startswith(("/v1/chat", "/v1/completions", "/v1/embeddings"))


def test_images_are_shown_with_a_picture() -> None:
    assert "data:image/png;base64," in lines("classify", images=True)[0]
    assert shlex.split(lines("embed", images=True)[0])[1] == "http://h:1/v1/embeddings"


def test_a_key_is_a_placeholder_in_the_lines() -> None:
    for abilities in (("write",), ("classify",)):
        curl, python = lines(*abilities, has_key=True)  # pyright: ignore[reportArgumentType]
        assert "Bearer YOUR_KEY" in curl
        assert "YOUR_KEY" in python


def test_the_engine_stands_in_its_own_process_or_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.serve.engine.remote.COMMAND", FAKE)
    engine = start_engine(spec(), Events(), stall_s=5.0)
    assert isinstance(engine, RemoteEngine)
    assert [model.name for model in engine.models()] == ["fake", "mine"]
    engine.stop(0.0)
    monkeypatch.setattr(process, "build_engine", build)
    engine = start_engine(spec(), Events(), stall_s=5.0, is_in_process=True)
    assert isinstance(engine, FakeEngine)
    assert [model.name for model in engine.models()] == ["fake", "mine"]
    with pytest.raises(ModelError, match="There is no adapter at missing"):
        start_engine(spec(adapter="missing"), Events(), stall_s=5.0, is_in_process=True)


def test_a_port_in_use_is_known_before_and_free_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "build_engine", build)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"Port {port} on 127.0.0.1 is in use"):
            serve_models(spec("absent"), HttpConfig(port=port), Events())
    with pytest.raises(ModelError, match="There is no model at absent"):
        serve_models(spec("absent"), HttpConfig(port=port), Events(), is_in_process=True)
    socket.create_server(("127.0.0.1", port)).close()


def test_a_recipe_can_say_all_of_it() -> None:
    values = {"model_name": "m", "scheme": "int8", "adapters": {"a": "./a"}, "engine": {"max_rows": 4}}
    config = from_mapping(ServeConfig, values, "serve")
    assert (config.adapters, config.engine.max_rows, config.precision) == ({"a": "./a"}, 4, None)
