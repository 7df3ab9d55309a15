"""How long a run is and how fast it learns, decided in one place."""

import dataclasses
import re
from pathlib import Path

import pytest

from danlu.core import plugins
from danlu.core.errors import ConfigError
from danlu.flow.recipe import FOLDER, load_stage
from danlu.train.lora import LoraConfig
from danlu.train.method import PartsConfig
from danlu.train.optim import OptimConfig
from danlu.train.settings import RunConfig, Usual, count_steps, settle
from danlu.train.stages.classify import ClassifierConfig
from danlu.train.stages.sft import SftConfig
from danlu.train.texts import TuningOptim

TASKS = [use for use in plugins.names(FOLDER) if load_stage(use).trains]


def test_what_trains_decides_the_rate() -> None:
    assert settle(SftConfig()).optim.learning_rate == 2e-3
    assert settle(SftConfig(lora=None)).optim.learning_rate == 1e-4
    assert settle(SftConfig(lora=None, parts=PartsConfig(last_blocks=1))).optim.learning_rate == 1e-4
    assert settle(ClassifierConfig(lora=LoraConfig())).optim.learning_rate == 2e-4


def test_a_rate_that_is_given_stays_and_so_does_the_rest_of_the_optimiser() -> None:
    assert settle(SftConfig(optim=OptimConfig(learning_rate=0.5))).optim.learning_rate == 0.5
    settled = settle(ClassifierConfig(optim=TuningOptim(clip_norm=3.0)))
    assert settled.optim == TuningOptim(learning_rate=2e-5, clip_norm=3.0)


def test_an_optimiser_whose_rate_nobody_settled_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="settle comes first"):
        _ = OptimConfig().peak_rate


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (None, 3.0)),
        ({"steps": 7}, (7, None)),
        ({"epochs": 0.5}, (None, 0.5)),
        ({"steps": 7, "epochs": 2.0}, (7, 2.0)),
    ],
)
def test_the_tasks_own_length_counts_only_when_none_is_given(
    given: dict[str, float], expected: tuple[int | None, float | None]
) -> None:
    settled = settle(ClassifierConfig(**given))  # pyright: ignore[reportArgumentType]
    assert (settled.steps, settled.epochs) == expected
    assert settle(settled) == settled


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(7, None, 7), (None, 2.0, 20), (None, 0.01, 1), (7, 2.0, 7), (70, 2.0, 20)],
)
def test_steps_and_epochs_each_work_alone_and_together_the_first_to_end(
    steps: int | None, epochs: float | None, expected: int
) -> None:
    assert count_steps(RunConfig(steps=steps, epochs=epochs), per_epoch=10) == expected


@pytest.mark.parametrize("use", TASKS)
def test_every_training_stage_settles_its_config_so_the_recipe_records_it(use: str) -> None:
    plugin = load_stage(use)
    config = plugin.settle(plugin.config_type())
    assert config.optim.learning_rate is not None
    assert (config.steps is None) != (config.epochs is None)


def test_only_one_of_them_is_usual() -> None:
    assert str(Usual(epochs=3.0, full_rate=2e-5, adapter_rate=2e-4)) == (
        "3 epochs, learning rate 2e-05, with lora 0.0002"
    )
    for use in TASKS:
        usual = load_stage(use).config_type.usual
        assert (usual.steps is None) != (usual.epochs is None), use


@pytest.mark.parametrize("name", ["training.md", "training.zh-CN.md"])
def test_the_documents_table_of_rates_is_the_codes(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    for use in TASKS:
        usual = load_stage(use).config_type.usual
        length = usual.steps or f"{usual.epochs:g}"
        row = rf"\| `{use}` \| {length} \D+ \| {_written(usual.full_rate)} \| {_written(usual.adapter_rate)} \|"
        if use == "rank":  # takes no adapter
            row = row.rsplit("|", 2)[0] + "| – \\|"
        assert re.search(row, text), f"{use}: {row}"


def _written(rate: float) -> str:
    mantissa, exponent = f"{rate:.0e}".split("e")
    return f"{mantissa}e-{abs(int(exponent))}"


def test_a_length_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"steps is 0\. Use 1 or more"):
        dataclasses.replace(RunConfig(), steps=0)
