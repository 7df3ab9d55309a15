"""What a model would take and can, before it is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from danlu.core.errors import ModelError
from danlu.models.load import describe_model, load_model
from danlu.models.paged import bytes_of_page
from danlu.serve.engine.abilities import served_model
from danlu.serve.engine.needs import describe, free_bytes, size_of
from danlu.serve.engine.spec import ModelSpec
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_what_a_model_can_is_known_without_its_weights(folder: Path) -> None:
    spec = ModelSpec(name="a", path=str(folder), precision="fp32")
    found = describe(spec, created=7).served
    assert found == served_model(load_model(folder, precision="fp32"), "a", created=7)


def test_a_model_takes_its_weights_a_table_and_a_small_cache(folder: Path) -> None:
    model = describe_model(folder, precision="fp32")
    assert all(parameter.device.type == "meta" for parameter in model.network.parameters())
    weights, table = model.num_parameters() * 4, model.config.vocabulary_size * model.config.width * 4
    cache = bytes_of_page(model.stack_config, model.activation_dtype) * 512 // 64
    assert size_of(model) == weights + table + cache


def test_a_quantised_model_takes_about_a_quarter_of_the_weights(folder: Path) -> None:
    plain = ModelSpec(name="a", path=str(folder), precision="fp32")
    sizes = [describe(spec, created=0).size_bytes for spec in (plain, replace(plain, scheme="int8"))]
    assert sizes[1] < sizes[0]


def test_files_that_are_no_model_are_told_before_anybody_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model at .*nothing\. Give a model folder"):
        describe(ModelSpec(name="a", path=str(tmp_path / "nothing")), created=0)


def test_there_is_memory_left() -> None:
    assert free_bytes() > 0
