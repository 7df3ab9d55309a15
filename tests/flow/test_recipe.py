from pathlib import Path

import pytest

from danlu.core.errors import ConfigError
from danlu.flow.recipe import load_recipe

from .conftest import RECIPE, Kitchen


def load(kitchen: Kitchen, text: str, *overrides: str):
    return load_recipe(kitchen.write(text), overrides, kitchen.load)


def stages(*lines: str, rest: str = "") -> str:
    return "name: tiny\nstages:\n" + "".join(f"  - {line}\n" for line in lines) + rest


def test_a_recipe_is_read_in_order_with_its_defaults(kitchen: Kitchen) -> None:
    recipe = load(kitchen, RECIPE)
    assert [stage.name for stage in recipe.stages] == ["first", "second", "third"]
    assert (recipe.seed, recipe.stages[0].config.steps, recipe.stages[0].config.lora.rank) == (3, 10, 8)


def test_overrides_reach_a_stage_a_nested_key_and_the_recipe_itself(kitchen: Kitchen) -> None:
    recipe = load(kitchen, RECIPE, "first.steps=50", "third.lora.rank=4", "first.tags=[a, b]", "seed=9")
    first, _, third = recipe.stages
    assert (first.config.steps, first.config.tags, third.config.lora.rank, recipe.seed) == (50, ("a", "b"), 4, 9)


def test_stages_that_share_a_yaml_anchor_are_overridden_apart(kitchen: Kitchen) -> None:
    text = stages("{name: a, use: write, lora: &l {rank: 2}}", "{name: b, use: write, lora: *l}")
    first, second = load(kitchen, text, "a.lora.rank=5").stages
    assert (first.config.lora.rank, second.config.lora.rank) == (5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: tiny\nstagess: []\n", r"Unknown key 'tiny\.stagess'\. Did you mean 'stages'\?"),
        ("name: tiny\nstages: []\n", r"stages is empty\. Give at least one"),
        ("- a\n", r"tiny\.yaml holds a list, not a mapping\. A recipe has name"),
        ("name: Tiny!\nstages: [{name: a, use: write}]\n", r"name is 'Tiny!'\. Use lower-case letters"),
        ("name: a\nname: b\n", "'name' stands twice"),
        ("name: tiny\nstages: [a]\n", r"tiny\.stages\[0\] must be a mapping, got 'a'"),
        (stages("{name: a, use: write, stepss: 3}"), r"Unknown key 'a\.stepss'\. Did you mean 'steps'\?"),
        (stages("{name: a, use: write, rank: 3}"), r"Unknown key 'a\.rank'\. Did you mean 'lora\.rank'\?"),
        (stages("{name: a, use: write, lora: {ranks: 3}}"), r"Unknown key 'a\.lora\.ranks'\. Did you mean 'rank'\?"),
        (stages("{name: a, use: write, input: {}}"), r"Unknown key 'a\.input'\. Did you mean 'inputs'\?"),
        (stages("{name: a, use: write, steps: many}"), r"a\.steps must be a whole number, got 'many'"),
        (stages("{name: a, use: write, steps: 0}"), r"a: steps is 0\. Use 1 or more"),
        (stages("{name: a, use: write, mode: medium}"), r"a\.mode is 'medium'\. Choose one of fast, slow"),
        (stages("{use: write}"), r"stage 1: name is None"),
        (stages("{name: seed, use: write}"), r"stage 1 is called 'seed', a key of the recipe itself"),
        (stages("{name: a}"), r"a\.use is None\. Name the stage's plugin"),
        (stages("{name: a, use: write}", "{name: a, use: write}"), r"Two stages are called 'a'"),
        (stages("{name: a, use: write, inputs: [b]}"), r"a\.inputs must be a mapping, got \['b'\]"),
        (stages("{name: a, use: join}"), r"Stage 'a' lacks input rows \(texts to join\)\. Add it to a\.inputs"),
        (
            stages("{name: data, use: write}", "{name: b, use: join, inputs: {row: data}}"),
            r"Unknown input 'b\.inputs\.row'\. Did you mean 'rows'\?",
        ),
        (
            stages("{name: data, use: write}", "{name: b, use: join, inputs: {rows: dats}}"),
            r"b\.inputs\.rows is 'dats', which is no stage\. Did you mean 'data'\?",
        ),
        (
            stages("{name: a, use: join, inputs: {rows: b}}", "{name: b, use: write}"),
            r"a\.inputs\.rows is 'b', which is not an earlier stage\. Move it up",
        ),
        (
            stages("{name: s, use: serve}", "{name: after, use: write}"),
            r"Stage 'after' comes after 's', which keeps running\. Move it up",
        ),
        (
            stages("{name: tuned, use: write}", rest="aliases: {best: tunde}\n"),
            r"Alias 'best' names stage 'tunde', which there is not\. Did you mean 'tuned'\?",
        ),
        (
            stages("{name: tuned, use: write}", rest="summary: {path: s.json, values: {x: tune.loss}}\n"),
            r"summary\.values\.x is 'tune\.loss', which starts with no stage\. Did you mean 'tuned'\?",
        ),
        (stages("{name: a, use: write}", rest="summary: {path: ../s.json}\n"), r"summary\.path is '\.\./s\.json'"),
        (stages("{name: a, use: write}", rest="grid_kg_per_kwh: -1\n"), r"grid_kg_per_kwh is -1\.0\. Use 0 or more"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong_and_what_was_meant(kitchen: Kitchen, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kitchen, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frist.steps=3", r"Override 'frist\.steps=3': there is no stage 'frist'\. Did you mean 'first'\?"),
        ("first.stepz=3", r"Unknown key 'first\.stepz'\. Did you mean 'steps'\?"),
        ("first=3", r"Override 'first=3' names no key of stage 'first'\. Write first\.KEY=VALUE"),
        ("first.steps", r"Override 'first\.steps' is not KEY=VALUE"),
        ("first.name=x", r"Override 'first\.name=x' would rename a stage"),
        ("sed=3", r"there is no stage 'sed'\. Did you mean 'seed'\?"),
        ("seed=abc", r"tiny\.seed must be a whole number, got 'abc'"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(kitchen: Kitchen, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kitchen, RECIPE, override)


def test_an_unknown_plugin_suggests_the_nearest_stage_file(kitchen: Kitchen) -> None:
    with pytest.raises(ConfigError, match=r"'fetsch'\. Did you mean 'fetch'\?"):
        load_recipe(kitchen.write(stages("{name: a, use: fetsch}")))


def test_a_missing_recipe_suggests_one_that_exists(kitchen: Kitchen) -> None:
    kitchen.write()
    with pytest.raises(ConfigError, match=r"There is no recipe file .*tinny\.yaml\. Did you mean '.*tiny\.yaml'\?"):
        load_recipe(kitchen.folder / "tinny.yaml")


def test_a_recipe_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("name: 丹".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"r\.yaml is not UTF-8 text \(byte 6\)\. Save it as UTF-8"):
        load_recipe(path)


def test_secrets_do_not_reach_the_records(kitchen: Kitchen) -> None:
    recipe = load(kitchen, RECIPE, "first.sizes.api_key=123", "first.steps=5")
    assert recipe.overrides == ("first.sizes.api_key=***", "first.steps=5")
    assert recipe.stages[0].config.sizes == {"api_key": 123}
