"""Product copy from title, class and attributes (requirement: e-commerce description generation).

Coverage is the share of given attributes that the copy states; invention is the share of stated attributes that were
not given. Both read the copy with the same lexicon that labelled the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from danlu.core.errors import DataError
from danlu.core.records import Message
from danlu.evaluate.metrics import Bleu4, ChrF, Metric, Rate
from danlu.evaluate.tasks import Example
from danlu.text import lexicon


class ProductCopy:
    """The plugin."""

    name = "product_copy"
    version = 1

    def examples(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """One example a row; the last message is the reference, those before it the prompt."""
        examples: list[Example] = []
        for number, row in enumerate(rows, start=1):
            messages, facts = row.get("messages"), row.get("attributes")
            if not _has_answer(messages) or not isinstance(facts, Mapping):
                raise DataError(
                    f"Row {number} ({row.get('id', 'no id')}) has no attributes or no reference answer.",
                    "A product_copy row has messages ending with the assistant's, and attributes.",
                )
            examples.append(
                Example(
                    id=str(row.get("id", number)),
                    prompt=messages[:-1],
                    reference=messages[-1]["content"],
                    facts=facts,
                )
            )
        return examples

    def metrics(self, examples: Sequence[Example]) -> dict[str, Metric]:
        """BLEU-4, chrF, coverage, invention."""
        given = [{(key, value) for key, values in e.facts.items() for value in values} for e in examples]

        def covered(item: int, output: str) -> tuple[int, int]:
            return len(given[item] & _stated(output)), len(given[item])

        def invented(item: int, output: str) -> tuple[int, int]:
            stated = _stated(output)
            return len(stated - given[item]), len(stated)

        is_chinese = any("\u4e00" <= c <= "\u9fff" for e in examples[:20] for c in e.reference)
        version = f"lexicon|task:{self.name}|v:{self.version}"
        return {
            "bleu4": Bleu4(tokenize="zh" if is_chinese else "13a"),
            "chrf": ChrF(),
            "coverage": Rate(f"given attributes stated / given|{version}", covered),
            "invention": Rate(f"stated attributes not given / stated|{version}", invented),
        }


def _has_answer(messages: Any) -> TypeGuard[list[Message]]:
    """Whether these are messages, at least two, of which the last is the assistant's."""
    return (
        isinstance(messages, list)
        and len(messages) >= 2
        and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages)
        and messages[-1].get("role") == "assistant"
    )


def _stated(text: str) -> set[tuple[str, str]]:
    return {(key, value) for key, values in lexicon.find(text).items() for value in values}


plugin = ProductCopy()
