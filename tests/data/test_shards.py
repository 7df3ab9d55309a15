from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.core.errors import DataError
from danlu.data.shards import TokenShards
from tests.data.token_folders import random_documents, write_shards

DOCUMENTS = random_documents(40)
FLAT = [token for document in DOCUMENTS for token in document]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_shards(folder, DOCUMENTS, shard_tokens=200)
    return folder


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> TokenShards:
    shutil.copytree(whole, tmp_path / "s")
    return TokenShards(tmp_path / "s")


def test_documents_come_back_as_they_were_written(shards: TokenShards) -> None:
    assert len(shards.index.shards) == 5
    assert (shards.num_documents, shards.num_tokens) == (40, len(FLAT))
    assert [document.tolist() for document in shards.documents()] == DOCUMENTS
    assert [shards.document(number).tolist() for number in range(40)] == DOCUMENTS
    shards.verify()


def test_any_stretch_of_tokens_can_be_read_over_the_borders_of_shards(shards: TokenShards) -> None:
    random_ = random.Random(1)
    for _ in range(200):
        start = random_.randint(0, len(FLAT))
        stop = random_.randint(start, len(FLAT))
        assert shards.tokens(start, stop).tolist() == FLAT[start:stop]


def test_spans_lead_from_documents_to_tokens_in_any_order(shards: TokenShards) -> None:
    numbers = np.array([39, 0, 17, 17, 3])
    starts, stops = shards.spans(numbers)
    for number, start, stop in zip(numbers, starts, stops, strict=True):
        assert FLAT[start:stop] == DOCUMENTS[number]


def test_lengths_between_are_where_documents_end(shards: TokenShards) -> None:
    owner = [number for number, document in enumerate(DOCUMENTS) for _ in document]
    random_ = random.Random(2)
    for _ in range(200):
        start = random_.randint(0, len(FLAT) - 1)
        stop = random_.randint(start + 1, len(FLAT))
        inside = owner[start:stop]
        expected = [inside.count(number) for number in dict.fromkeys(inside)]
        assert shards.lengths_between(start, stop).tolist() == expected


def test_reading_copies_nothing_and_cannot_write(shards: TokenShards) -> None:
    view = shards.document(3)
    assert view.base is not None
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_numpy_alone_can_read_the_files(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", DOCUMENTS, shard_tokens=10**6)
    tokens = np.fromfile(tmp_path / "s" / "tokens-00000.bin", "<u2")
    offsets = np.fromfile(tmp_path / "s" / "offsets-00000.bin", "<i8")
    assert tokens.tolist() == FLAT
    assert [part.tolist() for part in np.split(tokens, offsets[1:-1])] == DOCUMENTS
    assert shards.index.dtype == "uint16"


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_large_vocabularies_take_four_bytes_an_id(tmp_path: Path, size: int, dtype: str) -> None:
    shards = write_shards(tmp_path / "s", [[0, size - 1]], vocabulary_size=size)
    assert shards.index.dtype == dtype
    assert shards.document(0).tolist() == [0, size - 1]


def test_no_documents_are_no_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [])
    assert (shards.num_documents, shards.num_tokens, list(shards.documents())) == (0, 0, [])
    assert shards.tokens(0, 0).tolist() == []


# damage


def _edit(**changes: Any) -> Callable[[Path], None]:
    """Change keys of the index, or of its first shard (``shard_``)."""

    def go(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        for key, value in changes.items():
            place = index["shards"][0] if key.startswith("shard_") else index
            place[key.removeprefix("shard_")] = value
        (folder / "index.json").write_text(json.dumps(index))

    return go


def _overwrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return go


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_overwrite("tokens-00000.bin", lambda b: b[:-2]), r"tokens-00000\.bin has \d+ bytes; \d+ numbers of 2 bytes"),
        (
            _overwrite("offsets-00001.bin", lambda b: b + b"x"),
            r"offsets-00001\.bin has \d+ .* are \d+\. It was cut",
        ),
        (_overwrite("offsets-00000.bin", lambda b: b"\1" + b[1:]), r"does not lead from 0 to \d+ in growing steps"),
        (_overwrite("offsets-00000.bin", lambda b: b[:8] + b[16:24] + b[8:16] + b[24:]), r"in growing steps"),
        (_overwrite("index.json", lambda b: b[:50]), r"index\.json is not JSON"),
        (_overwrite("index.json", lambda b: b"[]"), r"index\.json holds no JSON object"),
        (_edit(dtype="int8"), r"is not an index of token shards: index\.dtype is 'int8'"),
        (_edit(dtype="uint32"), r"tokens-00000\.bin has \d+ bytes; \d+ numbers of 4 bytes"),
        (_edit(version=2), r"version 2; 'danlu-token-shards', version 1, is read.*Make it again"),
        (_edit(format="other"), r"It is 'other', version 1"),
        (_edit(num_tokens=5), r"It tells of 40 documents with 5 tokens, its shards of 40 with \d+"),
        (_edit(vocabulary_size=70_000), r"vocabulary_size is 70000, which uint16 does not hold"),
        (_edit(vocabulary_size=-1), r"vocabulary_size is -1"),
        (_edit(shard_tokens="../index.json"), r"A shard's file is called '\.\./index\.json'"),
        (_edit(shard_tokens="none.bin"), r"There is no none\.bin"),
        (_edit(shard_tokens="tokens-00001.bin"), r"names one file twice"),
        (_edit(shard_num_documents=0), r"is said to have 0 documents"),
        (_edit(shards="x"), r"index\.shards must be a list"),
    ],
)
def test_what_the_index_promises_and_the_files_do_not_hold_is_named(
    shards: TokenShards, damage: Callable[[Path], None], message: str
) -> None:
    damage(shards.folder)
    with pytest.raises(DataError, match=message):
        TokenShards(shards.folder)


def test_changed_bytes_are_found_by_their_hash(shards: TokenShards) -> None:
    path = shards.folder / "tokens-00002.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens-00002\.bin has sha256 \w+, not \w+\. It is damaged"):
        TokenShards(shards.folder).verify()


def test_an_id_beyond_the_vocabulary_is_refused(shards: TokenShards) -> None:
    _edit(vocabulary_size=10)(shards.folder)
    smaller = TokenShards(shards.folder)
    with pytest.raises(DataError, match=r"holds the id \d+, but its vocabulary has 10\."):
        smaller.check_ids(smaller.tokens(0, 100))


def test_a_folder_without_an_index_is_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no token shards: there is no index\.json\. Make them with"):
        TokenShards(tmp_path)


@pytest.mark.parametrize("seed", range(150))
def test_random_damage_is_a_data_error_or_harmless(shards: TokenShards, seed: int) -> None:
    random_ = random.Random(seed)
    folder = shards.folder
    path = random_.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    for _ in range(random_.randint(1, 4)):
        action = random_.choice(("flip", "cut", "insert", "swap"))
        place = random_.randrange(len(content) or 1)
        if action == "flip" and content:
            content[place] = random_.randrange(256)
        elif action == "cut":
            del content[place:]
        elif action == "insert":
            content[place:place] = random_.randbytes(random_.randint(1, 9))
        elif path.suffix == ".json":
            digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
            for i in random_.sample(digits, min(3, len(digits))):
                content[i : i + 1] = random_.choice((b"-1", b"99999999999999999999", b"0", b"1.5", b"null"))[:]
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        damaged = TokenShards(folder)
        assert sum(len(document) for document in damaged.documents()) == damaged.num_tokens
        damaged.verify()
