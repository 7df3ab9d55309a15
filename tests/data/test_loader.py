from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.data.loader import Documents, LoaderConfig, TokenLoader, TokenRows, TokenSource, lay_end_to_end
from danlu.data.shards import TokenShards
from tests.data.token_folders import numbered_documents, write_shards

DOCUMENTS = numbered_documents(400, longest=70)
TOTAL = sum(map(len, DOCUMENTS))
CONFIG = LoaderConfig(sequence_length=32, sequences_per_batch=8)
LAYOUTS: tuple[Documents, ...] = get_args(Documents)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return write_shards(tmp_path_factory.mktemp("s"), DOCUMENTS, vocabulary_size=50_000, shard_tokens=4000)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    documents = [[40_000 + token for token in document] for document in DOCUMENTS[:50]]
    return write_shards(tmp_path_factory.mktemp("o"), documents, vocabulary_size=50_000)


def load(*shards: TokenShards, config: LoaderConfig = CONFIG, seed: int = 5, **options: Any) -> TokenLoader:
    return TokenLoader([TokenSource(shards=s) for s in shards], config, seed=seed, **options)


def take(loader: TokenLoader, count: int) -> list[tuple[list[int], list[int]]]:
    return [(rows.ids.tolist(), rows.lengths.tolist()) for rows in itertools.islice(loader, count)]


def layout(name: Documents) -> LoaderConfig:
    return dataclasses.replace(CONFIG, documents=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_batches_are_rows_end_to_end(shards: TokenShards, name: Documents) -> None:
    for rows in itertools.islice(load(shards, config=layout(name)), 20):
        assert rows.ids.dtype == np.int64
        assert rows.lengths.sum() == len(rows.ids) <= 8 * 32
        assert rows.lengths.min() > 0
        assert (rows.lengths.tolist() == [32] * 8) == (name == "joined")


def test_rows_hold_the_tokens_of_one_document_in_order(shards: TokenShards) -> None:
    owner = {token: number for number, document in enumerate(DOCUMENTS) for token in document}
    for rows in itertools.islice(load(shards), 30):
        for row in np.split(rows.ids, np.cumsum(rows.lengths)[:-1]):
            assert row.tolist() == list(range(row[0], row[0] + len(row)))
            assert owner[int(row[0])] == owner[int(row[-1])]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_order_is_a_function_of_the_seed(shards: TokenShards, name: Documents) -> None:
    config = layout(name)
    assert take(load(shards, config=config), 30) == take(load(shards, config=config), 30)
    assert take(load(shards, config=config), 3) != take(load(shards, config=config, seed=6), 3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_resumes_in_a_row_equal_an_uninterrupted_run_over_epochs(shards: TokenShards, name: Documents) -> None:
    config = layout(name)
    whole = load(shards, config=config)
    steps = 3 * whole.per_epoch + 5
    expected = take(whole, steps)
    found: list[tuple[list[int], list[int]]] = []
    saved = json.dumps(load(shards, config=config).state())
    for count in (whole.per_epoch - 2, 4, steps - whole.per_epoch - 2):
        loader = load(shards, config=config)
        loader.load_state(json.loads(saved))
        found += take(loader, count)
        saved = json.dumps(loader.state())
    assert found == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_share_each_batch_and_their_number_may_change(shards: TokenShards, name: Documents) -> None:
    config = layout(name)
    alone = load(shards, config=config)
    expected = [sorted(ids) for ids, _ in take(alone, 12)]
    state: dict[str, Any] | None = None
    found: list[list[int]] = []
    for world_size in (1, 3, 8, 2):
        ranks = [load(shards, config=config, rank=rank, world_size=world_size) for rank in range(world_size)]
        for rank in ranks:
            if state is not None:
                rank.load_state(state)
        parts = [take(rank, 3) for rank in ranks]
        found += [sorted(token for part in parts for token in part[step][0]) for step in range(3)]
        assert len({json.dumps(rank.state()["sequence"]) for rank in ranks}) == 1
        state = ranks[-1].state()
    assert found == expected


def test_an_epoch_repeats_and_loses_nothing_whatever_the_ranks(shards: TokenShards) -> None:
    config = dataclasses.replace(CONFIG, sequences_per_batch=7)
    loaders = [load(shards, config=config, rank=rank, world_size=2) for rank in range(2)]
    counts: Counter[int] = Counter()
    for parts in zip(*loaders, strict=True):
        for rows in parts:
            counts.update(rows.ids.tolist())
        if len(counts) == TOTAL:
            break
    twice = sum(count - 1 for count in counts.values())
    assert twice < 7 * 32, "only the batch in which the next epoch begins"


def test_another_batch_size_goes_on_at_the_same_sequence(shards: TokenShards) -> None:
    first = load(shards)
    take(first, 4)
    larger = load(shards, config=dataclasses.replace(CONFIG, sequences_per_batch=16))
    larger.load_state(first.state())
    pairs = take(first, 2)
    assert take(larger, 1)[0][0] == pairs[0][0] + pairs[1][0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_step_can_be_asked_for(shards: TokenShards, name: Documents) -> None:
    loader = load(shards, config=layout(name))
    expected = take(load(shards, config=layout(name)), 40)
    for step in (0, 39, 17, 3):
        micro_batches = loader.at(step)
        assert len(micro_batches) == 1
        rows = lay_end_to_end(micro_batches[0])
        assert (rows.ids.tolist(), rows.lengths.tolist()) == expected[step]


def test_a_step_is_cut_into_micro_batches(shards: TokenShards) -> None:
    loader = load(shards, micro_tokens=100)
    assert [len(part) for part in loader.at(0)] == [3, 3, 2]
    assert [len(part) for part in loader.at(0, 1, 3)] == [3]
    whole = Counter(token for rows in loader.at(0) for r in rows for token in r.ids.tolist())
    parts = [loader.at(0, rank, 3) for rank in range(3)]
    assert Counter(token for part in parts for rows in part for r in rows for token in r.ids.tolist()) == whole
    assert [len(part) for part in load(shards, micro_tokens=1).at(0)] == [1] * 8


def test_sources_are_mixed_by_weight(shards: TokenShards, other: TokenShards) -> None:
    sources = [TokenSource(shards=shards, weight=3.0), TokenSource(shards=other, weight=1.0)]
    loader = TokenLoader(sources, layout("joined"), seed=1)
    counts = Counter(
        bool(ids[0] >= 40_000) for rows in itertools.islice(loader, 100) for ids in rows.ids.reshape(8, 32)
    )
    assert counts[True] == pytest.approx(200, abs=4)


def test_without_weights_each_source_comes_by_its_tokens(shards: TokenShards, other: TokenShards) -> None:
    loader = load(shards, other)
    share = np.mean(take_ids(loader, 200) >= 40_000)
    assert share == pytest.approx(other.num_tokens / (shards.num_tokens + other.num_tokens), rel=0.1)
    assert loader.per_epoch * 8 * 32 == pytest.approx(shards.num_tokens + other.num_tokens, rel=0.05)


def take_ids(loader: TokenLoader, count: int) -> np.ndarray[Any, Any]:
    return np.concatenate([rows.ids for rows in itertools.islice(loader, count)])


def test_a_mixture_resumes_exactly(shards: TokenShards, other: TokenShards) -> None:
    expected = take(load(shards, other), 90)
    first = load(shards, other)
    assert take(first, 70) == expected[:70]
    again = load(shards, other)
    again.load_state(json.loads(json.dumps(first.state())))
    assert take(again, 20) == expected[70:]


def test_a_position_of_other_data_is_refused(shards: TokenShards, other: TokenShards) -> None:
    state = load(shards).state()
    longer = dataclasses.replace(CONFIG, sequence_length=64)
    for wrong in (load(other), load(shards, seed=6), load(shards, config=longer), load(shards, other)):
        with pytest.raises(ConfigError, match=r"belongs to other shards, weights, seed or sequence length\. Go on"):
            wrong.load_state(state)


@pytest.mark.parametrize("change", [{"sequence": -1}, {"sequence": "x"}, {"places": None}, {"places": [[1]]}])
def test_a_damaged_position_is_refused(shards: TokenShards, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"saved position of the data is damaged"):
        load(shards).load_state({**load(shards).state(), **change})


def test_an_id_beyond_the_vocabulary_never_reaches_a_model(tmp_path: Path) -> None:
    write_shards(tmp_path, [[1, 2, 3, 999] * 20])
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"vocabulary_size": 1000', '"vocabulary_size": 500'))
    with pytest.raises(DataError, match=r"holds the id 999, but its vocabulary has 500"):
        next(iter(load(TokenShards(tmp_path))))


def test_sources_of_different_tokenizers_are_refused(shards: TokenShards, other: TokenShards, tmp_path: Path) -> None:
    write_shards(tmp_path, DOCUMENTS[:9], vocabulary_size=50_000)
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"tokenizer_sha256": ""', '"tokenizer_sha256": "abc"'))
    with pytest.raises(DataError, match=r"made by different tokenizers\. Tokenize all of them with one"):
        load(shards, TokenShards(tmp_path))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"There is no source of tokens\."),
        ([1.0, None], r"1 of 2 sources have a weight\. Give each source a weight, or none"),
        ([1.0, -1.0], r"The sources' weights are 1, -1\. Use positive numbers"),
        ([float("nan"), 1.0], r"weights are nan, 1"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(
    shards: TokenShards, weights: list[float | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenLoader([TokenSource(shards=shards, weight=weight) for weight in weights], CONFIG, seed=0)


def test_settings_that_cannot_be_are_refused(shards: TokenShards) -> None:
    with pytest.raises(ConfigError, match=r"sequence_length is 1\. Use 2 or more: one token predicts none"):
        LoaderConfig(sequence_length=1)
    with pytest.raises(ConfigError, match=r"sequences_per_batch is 0\. Use 1 or more"):
        LoaderConfig(sequences_per_batch=0)
    with pytest.raises(ConfigError, match=r"sequences_per_batch is 8, with 9 ranks\. Use 9 or more"):
        load(shards, rank=8, world_size=9)


def test_no_sequences_are_no_rows() -> None:
    nothing = lay_end_to_end([])
    assert isinstance(nothing, TokenRows)
    assert len(nothing.ids) == len(nothing.lengths) == 0
