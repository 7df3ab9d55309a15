"""A model that answers from a table, and rows for the product-copy task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from danlu.core.records import Completion, Delta, GenerateOptions, OnAdvance, Prompt, Score, Usage

ROWS: list[dict[str, Any]] = [
    {
        "id": f"row-{i}",
        "messages": [
            {"role": "user", "content": f"Write product copy.\nTitle: {colour} {material} {garment}"},
            {"role": "assistant", "content": f"This {colour} {material} {garment} has a loose fit and deep pockets."},
        ],
        "attributes": {"colour": [colour], "material": [material], "fit": ["loose"]},
    }
    for i, (colour, material, garment) in enumerate(
        (colour, material, garment)
        for garment in ("dress", "top", "skirt")
        for colour in ("navy", "black", "white", "green")
        for material in ("cotton", "silk", "linen", "wool")
    )
]


class Parrot:
    """A LanguageModel that says what ``speak`` makes of the last message."""

    def __init__(self, speak: Callable[[str], str]) -> None:
        self.speak = speak
        self.asked: list[GenerateOptions | None] = []

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        self.asked.append(options)
        answers: list[Completion] = []
        for prompt in prompts:
            text = self.speak(prompt if isinstance(prompt, str) else prompt[-1]["content"])
            usage = Usage(prompt_tokens=1, completion_tokens=len(text.split()))
            answers.append(Completion(text=f" {text}\n", finish_reason="stop", usage=usage))
            if on_advance is not None:
                on_advance(1)
        return answers

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        raise NotImplementedError

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        raise NotImplementedError


GOLD = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in ROWS}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return ROWS


@pytest.fixture
def gold() -> Parrot:
    """Says the reference."""
    return Parrot(lambda prompt: GOLD[prompt])


@pytest.fixture
def parrot() -> type[Parrot]:
    return Parrot
