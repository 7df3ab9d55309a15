"""What every file in models/archs promises, whatever kind of model it is."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from tests.models.case import Case
from tests.models.cases.vision import CONVNETS
from tests.models.families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = plugins.names("models.archs")
APART = {"resnet", "mobilenet_v2", "transformer", "recommender"}
"""Convolutions, which have no blocks to adapt or to quantise, and families of our own: each has tests of its own."""


@cache
def case_of(name: str) -> Case | None:
    """The first parity case of a family."""
    return next((case for case in FAMILIES.values() if case.config.model_type == name), None)


def configs_of(family: Architecture) -> list[dict[str, Any]]:
    """The config.json of every parity case of a family."""
    cases = [case for case in {**FAMILIES, **CONVNETS}.values() if case.config.model_type == family.model_type]
    return [case.config(**case.numbers).to_dict() | {"architectures": [case.peer.__name__]} for case in cases]


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> Architecture:
    return plugins.load("models.archs", request.param)


def test_a_file_is_named_as_its_family(family: Architecture, request: pytest.FixtureRequest) -> None:
    assert family.model_type.replace("-", "_") in request.node.callspec.params["family"]


def test_every_family_is_held_to_transformers(family: Architecture) -> None:
    known = family.model_type in APART or case_of(family.model_type) is not None
    assert known, "append a case to a table in tests/models/cases/"


def test_tensors_that_may_be_there_in_vain_are_none_that_is_read(family: Architecture) -> None:
    for theirs in configs_of(family):
        names = [name for source in family.weights(family.read_config(theirs)).values() for name in source.names]
        assert names
        for pattern in family.ignored:
            assert not [name for name in names if re.fullmatch(pattern, name)]


@pytest.mark.parametrize("family", [name for name in NAMES if name not in APART], indirect=True)
def test_other_people_quantised_weights_are_refused(family: Architecture) -> None:
    case = case_of(family.model_type)
    assert case is not None
    with torch.device("meta"):
        theirs: dict[str, Any] = case.config(**case.numbers).to_dict()
    theirs |= {"architectures": [case.peer.__name__], "quantization_config": {"bits": 4}}
    with pytest.raises(ModelError, match="quantization_config"):
        family.read_config(theirs)
