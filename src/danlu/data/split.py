"""Splits pairs by product, so that no product stands on two sides, and caps how often one product may stand.

Which split a product falls into depends on a hash of its id and the seed alone, not on its size or the row order.
Knows only the columns ``id``, ``product_id``, ``copy`` and ``attributes``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.data.pipeline import Drop
from danlu.data.words import num_units

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How many products are held out, and how many pairs one product may give."""

    test_products: int = 220
    """Products held out for evaluation, one pair each."""
    validation_products: int = 40
    """Products held out for watching training."""
    pairs_per_validation_product: int = 3
    """Most validation pairs of one product."""
    pairs_per_product: int = 40
    """Most training pairs of one product, so that none dominates."""
    most_held_out: float = 0.7
    """Largest share of the products that may be held out; with fewer products both splits shrink alike."""

    def __post_init__(self) -> None:
        if min(self.test_products, self.validation_products) < 0:
            raise ConfigError(
                f"test_products is {self.test_products}, validation_products {self.validation_products}.",
                "Use 0 or more.",
            )
        if min(self.pairs_per_product, self.pairs_per_validation_product) < 1:
            raise ConfigError("A cap of pairs per product is below 1.", "Use 1 or more.")
        if not 0 <= self.most_held_out < 1:
            raise ConfigError(f"most_held_out is {self.most_held_out}.", "Use at least 0, less than 1.")


def split(
    table: pa.Table, config: SplitConfig, seed: int, events: Events
) -> tuple[dict[str, list[dict[str, Any]]], list[Drop]]:
    """Rows of each split, and the rows left out with the reason. Training rows come in a seeded shuffled order."""
    by_product: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_product.setdefault(row["product_id"], []).append(row)
    if len(by_product) < 2:
        raise DataError(
            f"Only {len(by_product)} product has a usable pair, and at least 2 are needed to split.",
            "Loosen the operators' thresholds, check the columns, or give more rows.",
        )
    products = sorted(by_product, key=lambda product: _draw(seed, "product", product))
    num_test, num_validation = _held_out(len(products), config, events)
    chosen: dict[str, list[dict[str, Any]]] = {}
    dropped: list[Drop] = []
    chosen["test"] = []
    for product in products[:num_test]:
        best, *rest = sorted(by_product[product], key=lambda row: (*(-n for n in _richness(row)), row["id"]))
        chosen["test"].append(best)
        dropped += _drops(rest, "one_per_test_product", product)
    others = products[num_test:]
    for name, part, most in (
        ("validation", others[:num_validation], config.pairs_per_validation_product),
        ("train", others[num_validation:], config.pairs_per_product),
    ):
        chosen[name], over = _capped({product: by_product[product] for product in part}, most, seed)
        dropped += over
    _check(chosen)
    return {name: chosen[name] for name in SPLITS}, dropped


def _held_out(num_products: int, config: SplitConfig, events: Events) -> tuple[int, int]:
    """How many products go to test and validation: as configured, or fewer, which is said."""
    wanted = config.test_products + config.validation_products
    allowed = int(num_products * config.most_held_out)
    if wanted <= allowed:
        return config.test_products, config.validation_products
    num_test = max(min(1, config.test_products), allowed * config.test_products // wanted)
    num_validation = max(0, allowed - num_test) if config.validation_products else 0
    events.say(
        f"Only {num_products} products have a usable pair: {num_test} instead of {config.test_products} are held out "
        f"for test, {num_validation} instead of {config.validation_products} for validation."
    )
    return num_test, num_validation


def _capped(
    by_product: dict[str, list[dict[str, Any]]], most: int, seed: int
) -> tuple[list[dict[str, Any]], list[Drop]]:
    """At most ``most`` rows of each product, all in seeded order, and the rows over the cap."""
    rows: list[dict[str, Any]] = []
    dropped: list[Drop] = []
    for product, members in by_product.items():
        drawn = sorted(members, key=lambda row: _draw(seed, "row", row["id"]))
        rows += drawn[:most]
        dropped += _drops(drawn[most:], "product_cap", product)
    return sorted(rows, key=lambda row: _draw(seed, "order", row["id"])), dropped


def _drops(rows: list[dict[str, Any]], reason: str, detail: str) -> list[Drop]:
    return [Drop(id=row["id"], stage="split", reason=reason, detail=detail) for row in rows]


def _richness(row: dict[str, Any]) -> tuple[int, int]:
    """Attributes first, then length: the pair of a test product that asks most of a model."""
    return sum(map(len, json.loads(row["attributes"]).values())), num_units(row["copy"])


def _draw(seed: int, purpose: str, name: str) -> bytes:
    """A random but repeatable sort key."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).digest()


def _check(chosen: dict[str, list[dict[str, Any]]]) -> None:
    products = [{row["product_id"] for row in rows} for rows in chosen.values()]
    assert sum(map(len, products)) == len(set().union(*products)), "a product stands in two splits"
