from pathlib import Path

import pytest

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models.defaults import GenerationDefaults
from danlu.models.load import load_model
from danlu.models.writing import Writing
from danlu.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> TextTokenizer:
    return load_model(tiny_folder, precision="fp32").chat.tokenizer


def written(
    tokenizer: TextTokenizer, text: str, defaults: GenerationDefaults | None = None, **options: object
) -> Writing:
    """A writing that was given the tokens of ``text`` and the end token until it was over."""
    wanted = GenerateOptions(**{"max_tokens": 200, **options})  # type: ignore[arg-type]
    writing = Writing([1], wanted, tokenizer, 1024, defaults=defaults)
    for token in [*tokenizer.encode(text), *tokenizer.end_ids]:
        if writing.finish_reason is None:
            writing.push(token)
    return writing


def test_a_stop_token_ends_an_answer_and_is_not_part_of_its_text(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("The navy lace dress")
    writing = written(tokenizer, "The navy lace dress", stop_token_ids=(ids[3],))
    assert (writing.text, writing.finish_reason) == (tokenizer.decode(ids[:3]), "stop")
    assert writing.token_ids == ids[:4]


def test_end_tokens_can_be_ignored(tokenizer: TextTokenizer) -> None:
    writing = written(tokenizer, "a dress", ignore_eos=True)
    assert writing.finish_reason is None
    assert writing.token_ids[-1] in tokenizer.end_ids


def test_the_models_own_end_tokens_count_beside_the_tokenizers(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a dress")
    defaults = GenerationDefaults(end_ids=frozenset({ids[-1]}))
    assert written(tokenizer, "a dress", defaults).token_ids == ids
    assert written(tokenizer, "a lace", defaults).finish_reason == "stop"


def test_an_end_that_was_forced_by_the_limit_is_told_as_the_limit(tokenizer: TextTokenizer) -> None:
    (end,) = tokenizer.end_ids
    defaults = GenerationDefaults(last_ids=(end,))
    count = len(tokenizer.encode("a dress"))
    assert written(tokenizer, "a dress", defaults, max_tokens=count + 1).finish_reason == "length"
    assert written(tokenizer, "a dress", defaults).finish_reason == "stop"


def test_samples_of_one_seed_differ_and_repeat() -> None:
    first = Writing([1], GenerateOptions(temperature=1.0, seed=5), None, 10)
    seeds = [first.again(sample).generator.initial_seed() for sample in range(4)]
    assert first.generator.initial_seed() == seeds[0] == 5
    assert len(set(seeds)) == 4
    assert seeds == [first.again(sample).generator.initial_seed() for sample in range(4)]


def test_a_source_counts_as_the_prompt() -> None:
    writing = Writing([0], GenerateOptions(max_tokens=3), None, 10, source_ids=[5, 6, 7])
    assert (writing.usage.prompt_tokens, writing.num_tokens) == (3, 1)
    with pytest.raises(RequestError, match="The prompt is empty"):
        Writing([0], GenerateOptions(), None, 10, source_ids=[])
