"""The engine, which batches as requests come and go, writes what the reference writes: for every family that writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.core.records import GenerateOptions, Prompt
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.serve.engine.engine import Engine
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from tests.models.case import save_peer
from tests.models.families import FAMILIES, families
from tests.tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["1 2 3 4 5", "7 8 9", " ".join(["3"] * 14), "1 2 3 4 5 6 7 8 9 10 11 12"]
SHORT = ("llama-dynamic",)
"""Contexts too short for these prompts."""
NAMES = families(lambda case: case.decodes)


class Ids(ChatFormat):
    """Prompts are token ids."""

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return [int(token) for token in str(prompt).split()]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHORT])
def test_it_writes_what_the_reference_writes(name: str, tmp_path: Path) -> None:
    save_peer(FAMILIES[name].make(), tmp_path)
    model = load_model(tmp_path, precision="fp32", with_tokenizer=False)
    model._chat = Ids(TextTokenizer(make_tokenizer(), end_tokens=[]), None)
    options = GenerateOptions(max_tokens=10, ignore_eos=True)
    expected = [answer.token_ids for answer in LoadedModel(model).generate(PROMPTS, options)]
    with Engine(model) as engine:
        assert [answer.token_ids for answer in engine.generate(PROMPTS, options)] == expected
    assert all(len(answer) == 10 for answer in expected)
