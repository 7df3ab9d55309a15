"""The data card: where the rows came from, what each step did to them, and what is left, as JSON and as Markdown.

Knows nothing of how rows were made; it describes what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.core.files import atomic_write, write_json
from danlu.data.pipeline import Drop
from danlu.data.words import num_units

MOST_VALUES = 15
"""Attribute values listed per key in the Markdown card."""


def describe(
    *,
    source: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    dropped: Sequence[Drop],
    masked: Sequence[Sequence[str]],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    samples: Sequence[Mapping[str, str]],
    seed: int,
) -> dict[str, Any]:
    """All of the card's numbers; ``splits`` are the written rows, ``samples`` texts before and after."""
    rows = [row for part in splits.values() for row in part]
    attributes: dict[str, Counter[str]] = {}
    for row in rows:
        for key, values in row["attributes"].items():
            attributes.setdefault(key, Counter()).update(values)
    return {
        "source": dict(source),
        "licence": "The source states no licence for the data itself; check before passing the rows on.",
        "seed": seed,
        "steps": [{**step, "rows_after": counts[step["name"]]} for step in steps],
        "rows_in": source["rows"],
        "rows_kept": len(rows),
        "dropped": reasons(dropped),
        "dropped_by_stage": {
            stage: reasons([drop for drop in dropped if drop.stage == stage])
            for stage in dict.fromkeys(drop.stage for drop in dropped)
        },
        "masked": dict(sorted(Counter(kind for kinds in masked for kind in kinds).items())),
        "pairs": {name: len(part) for name, part in splits.items()},
        "products": {name: len({row["product_id"] for row in part}) for name, part in splits.items()},
        "attributes": {key: dict(_common(counter)) for key, counter in attributes.items()},
        "prompt_words": _spread([num_units(row["messages"][0]["content"]) for row in rows]),
        "copy_words": _spread([num_units(row["messages"][1]["content"]) for row in rows]),
        "samples": [dict(sample) for sample in samples],
    }


def reasons(dropped: Sequence[Drop]) -> dict[str, int]:
    """Rows dropped by reason, most frequent first."""
    return dict(_common(Counter(drop.reason for drop in dropped)))


def write(folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``card.json`` and ``card.md`` into ``folder``."""
    write_json(folder / "card.json", card)
    with atomic_write(folder / "card.md") as handle:
        handle.write(_markdown(card))


def _common(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _spread(numbers: Sequence[int]) -> dict[str, float]:
    """Smallest, median, mean and largest; empty for no numbers."""
    if not numbers:
        return {}
    ordered = sorted(numbers)
    mean = round(sum(ordered) / len(ordered), 1)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "mean": mean, "max": ordered[-1]}


def _markdown(card: Mapping[str, Any]) -> str:
    source = card["source"]
    lines = [
        "# Data card",
        "",
        f"Source: `{source['name']}`, sha256 `{source['sha256']}`, {source['rows']} rows. {card['licence']}",
        "",
        f"{card['rows_in']} rows in, {card['rows_kept']} kept as pairs, {sum(card['dropped'].values())} dropped, "
        f"each with its reason in `dropped.parquet`. Seed {card['seed']}.",
        "",
        "## Steps",
        "",
        *_table(("step", "version", "rows after"), [(s["name"], s["version"], s["rows_after"]) for s in card["steps"]]),
        "",
        "## Dropped",
        "",
        *_table(
            ("stage", "reason", "rows"),
            [(stage, why, n) for stage, part in card["dropped_by_stage"].items() for why, n in part.items()],
        ),
        "",
        "## Personal data masked",
        "",
        *(_table(("kind", "times"), list(card["masked"].items())) if card["masked"] else ["None was found."]),
        "",
        "## Splits",
        "",
        "No product stands in two splits.",
        "",
        *_table(("split", "pairs", "products"), [(n, card["pairs"][n], card["products"][n]) for n in card["pairs"]]),
        "",
        f"Words a prompt: {_line(card['prompt_words'])}. Words a copy: {_line(card['copy_words'])}.",
        "",
        "## Attributes",
        "",
    ]
    for key, values in card["attributes"].items():
        shown = ", ".join(f"{value} {count}" for value, count in list(values.items())[:MOST_VALUES])
        lines.append(f"- {key} ({len(values)} values): {shown}")
    lines += ["", "## Samples", ""]
    for sample in card["samples"]:
        for title, text in sample.items():
            lines += [f"{title}:", "", *(f"> {line}" for line in text.splitlines()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _line(spread: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:g}" for name, number in spread.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    numbers = [isinstance(cell, int) for cell in rows[0]] if rows else [False] * len(header)
    rule = [" ---: " if number else " --- " for number in numbers]
    body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return ["| " + " | ".join(header) + " |", "|" + "|".join(rule) + "|", *body]
