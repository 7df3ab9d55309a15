import asyncio
import json
import random
from pathlib import Path

import pytest

from danlu.client.load_prompts import PromptConfig, draw_jobs, draw_text, read_rows
from danlu.core.errors import ConfigError, DataError


async def count_pieces(text: str) -> int:
    """A tokenizer that cuts words longer than four letters in two and puts one token before."""
    return 1 + sum(1 + (len(word) > 4) for word in text.split())


def test_a_prompt_has_exactly_the_tokens_that_were_asked_for() -> None:
    async def lengths() -> list[int]:
        draw = random.Random(0)
        return [await count_pieces(await draw_text(n, count_pieces, draw)) for n in (2, 5, 128, 513)]

    assert asyncio.run(lengths()) == [2, 5, 128, 513]


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    config = PromptConfig(input_tokens=16, spread=0.5)
    first, again, other = (asyncio.run(draw_jobs(config, 8, None, seed)) for seed in ("0 0", "0 0", "0 1"))
    assert first == again
    assert not {job.prompt for job in first} & {job.prompt for job in other}
    lengths = {len(str(job.prompt).split()) for job in first}
    assert len(lengths) > 1
    assert lengths <= set(range(8, 25))
    assert {job.output_tokens for job in first} <= set(range(64, 193))


def test_prompts_take_turns_with_their_common_beginnings() -> None:
    jobs = asyncio.run(draw_jobs(PromptConfig(input_tokens=4, prefix_tokens=32, num_prefixes=2), 4, None, "0"))
    beginnings = [" ".join(str(job.prompt).split()[:32]) for job in jobs]
    assert beginnings[0] == beginnings[2] != beginnings[1] == beginnings[3]
    assert len({job.prompt for job in jobs}) == 4


def test_conversations_and_batches_have_texts_of_their_own() -> None:
    job = asyncio.run(draw_jobs(PromptConfig(input_tokens=8, turns=3), 1, None, "0"))[0]
    assert [len(text.split()) for text in (str(job.prompt), *job.follow_ups)] == [8, 8, 8]
    job = asyncio.run(draw_jobs(PromptConfig(input_tokens=8, batch=3), 1, None, "0"))[0]
    assert (len(job.more_texts), job.follow_ups) == (2, ())


def test_rows_of_a_file_are_asked_again_from_the_start(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "output_tokens": 7},
        {"messages": [{"role": "user", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    jobs = asyncio.run(draw_jobs(PromptConfig(file=path, output_tokens=5), 4, None, "0"))
    assert [job.prompt for job in jobs] == ["a", ({"role": "user", "content": "b"},), "c", "a"]
    assert [job.output_tokens for job in jobs] == [7, 5, 5, 7]
    path.write_text('{"text": "a"}\n{"input": "b"}\n{"prompt": "c"}\n')
    jobs = asyncio.run(draw_jobs(PromptConfig(file=path, batch=2), 2, None, "0"))
    assert [(job.prompt, job.more_texts) for job in jobs] == [("a", ("b",)), ("c", ("a",))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\nnot json\n', "line 2: "),
        ('{"prompt": 5}\n', "line 1: Expected `str | null`, got `int` - at `$.prompt`."),
        ('{"question": "a"}\n', "line 1 asks nothing. Give prompt, messages, text, input or conversations."),
        ("\n", "has no rows. Put one JSON object on each line."),
    ],
)
def test_a_row_that_asks_nothing_is_named(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_rows(path, 1)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        read_rows(tmp_path / "none.jsonl", 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input_tokens": 0}, "input_tokens is 0. Use 1 or more."),
        ({"spread": 1.0}, "spread is 1.0. Use 0 (equal lengths) to less than 1."),
        ({"file": Path("x"), "turns": 2}, "A file is given with prefix_tokens or turns. Those are for drawn prompts."),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PromptConfig(**fields)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == said
