"""What an engine is to serve."""

import pytest

from danlu.core.errors import ConfigError
from danlu.serve.engine.request import AdapterRequest
from danlu.serve.engine.spec import EngineSpec, ModelSpec


def test_names_must_be_there_and_differ() -> None:
    model = ModelSpec(name="a", path="x")
    with pytest.raises(ConfigError, match=r"There is no model to serve. Name at least one."):
        EngineSpec(models=())
    with pytest.raises(ConfigError, match=r"Two models or adapters are called 'a'. Give one of them another name"):
        EngineSpec(models=(model,), adapters=(AdapterRequest(action="load", name="a"),))
    with pytest.raises(ConfigError, match=r"has an empty name. Write NAME=PATH."):
        EngineSpec(models=(ModelSpec(name="", path="x"),))
