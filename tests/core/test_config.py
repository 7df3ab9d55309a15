from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.config import from_mapping, parse_override, parse_yaml, set_path, to_mapping
from danlu.core.errors import ConfigError, RequestError
from danlu.core.files import sha256_json


@dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup: int = 0
    kind: Literal["cosine", "constant", 1] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Adam:
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int
    lr: float = 1e-3
    resume: bool = True
    name: str = "run"
    folder: Path = Path("out")
    stop: tuple[str, ...] = ()
    lengths: list[int] = dataclasses.field(default_factory=list)
    columns: Sequence[str] = ()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    anything: Any = None
    free: dict = dataclasses.field(default_factory=dict)  # pyright: ignore
    seed: int | None = None
    limit: int | str = 1
    rank: int | Literal["auto"] = "auto"
    schedule: Schedule = Schedule()
    optimizer: Adam | Literal["none"] = Adam()
    derived: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}.", "Use 1 or more.")
        if self.seed == 13:
            raise RequestError("seed is 13.", "Use another.")


def train(text: str) -> Train:
    return from_mapping(Train, parse_yaml(text, "test"), "train")


def fails(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(text)


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("-2.5E+3", -2500.0), ("1.", 1.0), (".5", 0.5), ("0", 0), ("-7", -7), ("100_000", 100_000),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("10:30", "10:30"), ("010", "010"), ("2024-05-01", "2024-05-01"),
        (".nan", ".nan"), ("1e", "1e"), ("-", None), ("'1'", "1"), ("你好", "你好"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_yaml_scalars_mean_what_they_look_like(text: str, value: object):
    parsed = parse_yaml(text if text != "-" else "", "test")
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_python_prints_is_read_back_as_the_same_float(number: float):
    assert parse_yaml(repr(number), "test") == number
    assert isinstance(parse_yaml(f"{number:e}", "test"), float)


def test_a_key_that_stands_twice_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r"'steps' stands twice in one mapping .*line 3"):
        parse_yaml("a: 1\nsteps: 1\nsteps: 2\n", "test")


def test_a_repeated_key_is_found_at_any_depth():
    with pytest.raises(ConfigError, match="'b' stands twice"):
        parse_yaml("a:\n  - {b: 1, b: 2}\n", "test")


def test_a_key_that_is_not_a_word_is_an_error():
    with pytest.raises(ConfigError, match="A key must be a plain word"):
        parse_yaml("? [a, b]\n: 1\n", "test")


def test_anchors_and_merges_work():
    text = "base: &base {steps: 1, lr: 0.1}\nlong:\n  <<: *base\n  steps: 9\n"
    assert parse_yaml(text, "test")["long"] == {"steps": 9, "lr": 0.1}


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\ta: 1", "a: 1\n---\nb: 2\n", "!!python/object:os.system {}"])
def test_broken_or_unsafe_yaml_is_an_error_naming_the_file(text: str):
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not valid YAML"):
        parse_yaml(text, "recipe.yaml")


def test_absurd_nesting_is_an_error_and_not_a_crash():
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_yaml("[" * 5000 + "]" * 5000, "recipe.yaml")


# keys


def test_an_unknown_key_names_the_closest_one():
    fails("stpes: 5", "Unknown key 'train.stpes'. Did you mean 'steps'?")


def test_an_unknown_nested_key_is_named_with_its_path():
    fails("{steps: 1, schedule: {warmpu: 3}}", "Unknown key 'train.schedule.warmpu'. Did you mean 'warmup'?")


def test_a_derived_field_cannot_be_given():
    fails("{steps: 1, derived: 3}", "Unknown key 'train.derived'.")


def test_a_key_that_is_a_number_is_named():
    fails("{steps: 1, 5: 3}", "Unknown key 'train.5'.")


def test_a_missing_key_is_named():
    fails("{lr: 0.1}", "train lacks steps. Add it to the recipe.")


def test_a_value_the_config_itself_refuses_is_named_with_its_path():
    fails("steps: 0", "train: steps is 0. Use 1 or more.")


def test_a_refusal_of_any_kind_becomes_a_config_error():
    fails("{steps: 1, seed: 13}", "train: seed is 13. Use another.")


# types


def test_every_kind_of_field_is_read():
    config = train(
        "{steps: 3, lr: 1, resume: false, name: x, folder: a/b, stop: [a, b], lengths: [1, 2], columns: [c], "
        "labels: {bad: 0, 1: 1}, weights: {a: 2}, anything: [1, {x: y}], free: {k: [1]}, seed: 4, limit: all, rank: 8, "
        "schedule: {warmup: 2, kind: constant}, optimizer: {betas: [0, 1]}}"
    )
    assert config == Train(
        steps=3,
        lr=1.0,
        resume=False,
        name="x",
        folder=Path("a/b"),
        stop=("a", "b"),
        lengths=[1, 2],
        columns=("c",),
        labels={"bad": 0, "1": 1},
        weights={"a": 2.0},
        anything=[1, {"x": "y"}],
        free={"k": [1]},
        seed=4,
        limit="all",
        rank=8,
        schedule=Schedule(warmup=2, kind="constant"),
        optimizer=Adam(betas=(0.0, 1.0)),
    )
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: '3'", "train.steps must be a whole number, got '3'."),
        ("steps: 3.0", "train.steps must be a whole number, got 3.0."),
        ("steps: true", "train.steps must be a whole number, got True."),
        ("steps: null", "train.steps must be a whole number, got None."),
        ("{steps: 1, lr: fast}", "train.lr must be a number, got 'fast'."),
        ("{steps: 1, lr: true}", "train.lr must be a number, got True."),
        ("{steps: 1, lr: 1e999}", "train.lr must be a finite number, got inf."),
        ("{steps: 1, resume: 1}", "train.resume must be true or false, got 1."),
        ("{steps: 1, resume: no}", "train.resume must be true or false, got 'no'."),
        ("{steps: 1, name: 1.0}", "train.name must be text, got 1.0. Put it in quotes."),
        ("{steps: 1, name: [a]}", "train.name must be text, got ['a']. Mend it"),
        ("{steps: 1, folder: 3}", "train.folder must be a path, got 3."),
        ("{steps: 1, stop: a}", "train.stop must be a list, got 'a'."),
        ("{steps: 1, stop: [a, 2]}", "train.stop[1] must be text, got 2."),
        ("{steps: 1, lengths: {a: 1}}", "train.lengths must be a list, got {'a': 1}."),
        ("{steps: 1, lengths: !!binary aGk=}", "train.lengths must be a list, got b'hi'."),
        ("{steps: 1, columns: [1]}", "train.columns[0] must be text, got 1."),
        ("{steps: 1, labels: [a]}", "train.labels must be a mapping, got ['a']."),
        ("{steps: 1, labels: {a: b}}", "train.labels.a must be a whole number, got 'b'."),
        ("{steps: 1, free: 3}", "train.free must be a mapping, got 3."),
        ("{steps: 1, seed: x}", "train.seed must be a whole number, got 'x'."),
        ("{steps: 1, limit: [1]}", "train.limit must be a whole number or text, got [1]."),
        ("{steps: 1, rank: best}", "train.rank must be a whole number or 'auto', got 'best'."),
        ("{steps: 1, schedule: cosine}", "train.schedule must be a mapping, got 'cosine'."),
        ("{steps: 1, schedule: {kind: cosin}}", "train.schedule.kind is 'cosin'. Choose one of cosine, constant, 1."),
        ("{steps: 1, schedule: {kind: true}}", "train.schedule.kind is True."),
        ("{steps: 1, optimizer: {betas: [0.9]}}", "train.optimizer.betas must be a list of 2, got [0.9]."),
        ("{steps: 1, optimizer: {bettas: []}}", "Unknown key 'train.optimizer.bettas'. Did you mean 'betas'?"),
        ("{steps: 1, optimizer: adam}", "train.optimizer must be a mapping or 'none', got 'adam'."),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected_and_got(text: str, message: str):
    fails(text, message)


def test_a_union_takes_the_first_option_that_fits():
    assert train("{steps: 1, limit: 3}").limit == 3
    assert train("{steps: 1, limit: '3'}").limit == "3"
    assert train("{steps: 1, seed: null}").seed is None
    assert train("{steps: 1, optimizer: none}").optimizer == "none"


# back to plain values


def test_a_config_survives_the_way_to_plain_values_and_back():
    config = train("{steps: 3, stop: [a], folder: x/y, schedule: {warmup: 2}, labels: {a: 1}}")
    plain = to_mapping(config)
    del plain["derived"]
    assert from_mapping(Train, plain, "train") == config
    assert plain["folder"] == "x/y"
    assert plain["stop"] == ["a"]
    assert list(plain)[:3] == ["steps", "lr", "resume"]


def test_writing_a_whole_number_for_a_float_does_not_change_the_hash():
    assert sha256_json(to_mapping(train("{steps: 1, lr: 1}"))) == sha256_json(to_mapping(train("{steps: 1, lr: 1.0}")))


# overrides


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("train.steps=50", (["train", "steps"], 50)),
        ("lr=1e-4", (["lr"], 1e-4)),
        ("a.b.c=[1, x]", (["a", "b", "c"], [1, "x"])),
        ("name=a=b", (["name"], "a=b")),
        (" a.b = {x: 1}", (["a", "b"], {"x": 1})),
        ("seed=", (["seed"], None)),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, parsed: tuple[list[str], object]):
    assert parse_override(text) == parsed


@pytest.mark.parametrize("text", ["steps", "=3", " =3", "a..b=3", ".a=3", ""])
def test_an_override_without_key_or_value_is_an_error(text: str):
    with pytest.raises(ConfigError, match=r"is not KEY=VALUE\. Write for example train\.steps=50\."):
        parse_override(text)


def test_an_override_with_a_broken_value_names_itself():
    with pytest.raises(ConfigError, match=r"override 'a=\[1' is not valid YAML"):
        parse_override("a=[1")


def test_setting_a_path_makes_mappings_on_the_way_and_keeps_the_rest():
    values: dict[str, Any] = {"train": {"lr": 0.1}}
    set_path(values, ["train", "steps"], 5)
    set_path(values, ["eval", "a", "b"], 1)
    assert values == {"train": {"lr": 0.1, "steps": 5}, "eval": {"a": {"b": 1}}}


def test_setting_a_path_through_a_plain_value_is_an_error():
    with pytest.raises(ConfigError, match=r"Override train.steps.x: 'steps' is 5, not a mapping. Shorten the path."):
        set_path({"train": {"steps": 5}}, ["train", "steps", "x"], 1)
