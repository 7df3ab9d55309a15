"""Recipes of wiring stages on the tiny random model and a small shop's reviews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import danlu
from danlu.flow.run import RunResult
from tests.tiny import write_shop

DATA = """
  - {{name: reviews, use: fetch, path: {shop}}}
  - name: data
    use: prepare
    inputs: {{rows: reviews}}
    split: {{test_products: 12, validation_products: 3}}
  - {{name: weights, use: fetch, path: {model}}}
  - {{name: base, use: convert, inputs: {{weights: weights}}}}
"""
Run = Callable[..., RunResult]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 reviews as CSV."""
    return write_shop(tmp_path_factory.mktemp("shop") / "reviews.csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for a file's tests: data and base are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(tmp_path: Path, home: Path, shop: Path, tiny_folder: Path, one_thread: None) -> Run:
    """Run more stages after data (from the shop) and base (the tiny model)."""

    def go(stages: str, *overrides: str, model: Path = tiny_folder, store: Path = home) -> RunResult:
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text("name: tiny\nseed: 5\nstages:" + DATA.format(shop=shop, model=model) + stages)
        return danlu.run(recipe, *overrides, store=store)

    return go
