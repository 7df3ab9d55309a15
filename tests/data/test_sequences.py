from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.data.sequences import ChunkedSequences, PackedSequences, Sequences
from danlu.data.shards import TokenShards
from tests.data.token_folders import numbered_documents, write_shards

T = 32
DOCUMENTS = numbered_documents(900, longest=80)
TOTAL = sum(map(len, DOCUMENTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    write_shards(path, DOCUMENTS, vocabulary_size=100_000, shard_tokens=9000)
    return path


def packed(folder: Path, seed: int = 1, *, is_shuffled: bool = True) -> PackedSequences:
    return PackedSequences(TokenShards(folder), T, (seed, 0), is_shuffled)


def chunked(folder: Path, seed: int = 1, *, is_shuffled: bool = True, is_joined: bool = False) -> ChunkedSequences:
    return ChunkedSequences(TokenShards(folder), T, (seed, 0), is_shuffled, is_joined)


def tokens(sequences: Sequences, number: int) -> list[int]:
    """Which tokens of the source; ids are numbered, so a token's id is its place."""
    return [place for start, stop in sequences.at(number)[0] for place in range(start, stop)]


def test_a_packed_epoch_has_every_token_once_and_the_next_one_too(folder: Path) -> None:
    sequences = packed(folder)
    assert sequences._windows_per_epoch > 3
    counts: Counter[int] = Counter()
    number = 0
    for epoch in (1, 2, 3):
        while sum(counts.values()) < epoch * TOTAL:
            counts.update(tokens(sequences, number))
            number += 1
        assert counts == Counter(dict.fromkeys(range(TOTAL), epoch))
    assert sequences.per_epoch() == pytest.approx(number / 3, rel=0.02)


def test_packed_rows_never_cross_a_document(folder: Path) -> None:
    sequences = packed(folder)
    owner = [number for number, document in enumerate(DOCUMENTS) for _ in document]
    for number in range(200):
        spans, lengths = sequences.at(number)
        assert [stop - start for start, stop in spans] == lengths.tolist()
        assert all(len({owner[place] for place in range(start, stop)}) == 1 for start, stop in spans)
        assert lengths.sum() <= T


def test_packed_sequences_are_nearly_full(folder: Path) -> None:
    sequences = packed(folder)
    assert TOTAL / (sequences.per_epoch() * T) >= 0.97


def test_each_epoch_and_each_seed_packs_otherwise(folder: Path) -> None:
    one = packed(folder)
    orders = {tuple(tokens(one, 0)), tuple(tokens(packed(folder, 2), 0)), tuple(tokens(one, one.per_epoch() + 5))}
    assert len(orders) == 3


def test_a_packed_number_is_the_same_however_it_is_reached(folder: Path) -> None:
    walked = packed(folder)
    expected = {number: tokens(walked, number) for number in range(2500)}
    jumping = packed(folder)
    for number in (2400, 3, 1200, 1199, 0, 2499):
        assert tokens(jumping, number) == expected[number]
    marked = packed(folder)
    walked.at(2400)
    marked.open_at(walked.bookmark())
    assert walked.bookmark()[2] > 1000
    for number in (2400, 2499, 10):
        assert tokens(marked, number) == expected[number]


def test_unshuffled_packing_is_the_same_each_epoch(folder: Path) -> None:
    sequences = packed(folder, is_shuffled=False)
    count = sequences.per_epoch()
    assert [tokens(sequences, n) for n in range(5)] == [tokens(sequences, count + n) for n in range(5)]


@pytest.mark.parametrize("bookmark", [None, [1], [0, -1, 0], ["a", 0, 0], [True, 0, 0]])
def test_a_damaged_bookmark_is_refused(folder: Path, bookmark: object) -> None:
    with pytest.raises(ConfigError, match=r"saved position of the data is damaged .*\. Start again"):
        packed(folder).open_at(bookmark)
    with pytest.raises(ConfigError, match=r"saved position of the data is damaged"):
        chunked(folder).open_at(bookmark)


def test_chunks_are_equal_cuts_of_all_tokens_each_once_an_epoch(folder: Path) -> None:
    sequences = chunked(folder)
    count = sequences.per_epoch()
    assert count == TOTAL // T
    for epoch in (0, 1):
        starts = [sequences.at(epoch * count + n)[0][0][0] for n in range(count)]
        assert sorted(starts) == list(range(0, count * T, T))
        assert starts != sorted(starts)


def test_a_chunks_rows_are_pieces_of_documents_unless_joined(folder: Path) -> None:
    owner = [number for number, document in enumerate(DOCUMENTS) for _ in document]
    sequences, joined = chunked(folder), chunked(folder, is_joined=True)
    for number in range(100):
        [(start, stop)], lengths = sequences.at(number)
        inside = owner[start:stop]
        assert lengths.tolist() == [inside.count(document) for document in dict.fromkeys(inside)]
        assert joined.at(number)[0] == [(start, stop)]
        assert joined.at(number)[1].tolist() == [T]


def test_unshuffled_chunks_come_in_order(folder: Path) -> None:
    sequences = chunked(folder, is_shuffled=False)
    assert [sequences.at(n)[0][0][0] for n in range(4)] == [0, T, 2 * T, 3 * T]


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    few = write_shards(tmp_path / "few", [[1, 2, 3]])
    with pytest.raises(DataError, match=r"few has 3 tokens, less than one sequence of 32\. Give more text, or a small"):
        ChunkedSequences(few, T, (0,), True, False)
    none = write_shards(tmp_path / "none", [])
    with pytest.raises(DataError, match=r"none has no documents\. Give more text, or hold out less"):
        PackedSequences(none, T, (0,), True)
