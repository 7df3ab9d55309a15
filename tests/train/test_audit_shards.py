from collections.abc import Sequence
from pathlib import Path

from danlu.data.shard_writer import ShardWriter
from danlu.data.shards import TokenShards
from danlu.train.audit_shards import audit_shards
from danlu.train.findings import Finding

from .corpus import tokenizer

TOKENIZER = tokenizer()
END = min(TOKENIZER.end_ids)


def shards(folder: Path, documents: Sequence[Sequence[int]]) -> TokenShards:
    with ShardWriter(folder, vocabulary_size=1000) as writer:
        for number, ids in enumerate(documents):
            writer.add(number, ids)
        writer.finish()
    return TokenShards(folder)


def findings(tmp_path: Path, train: Sequence[Sequence[int]], watched: Sequence[Sequence[int]]) -> dict[str, Finding]:
    folders = shards(tmp_path / "train", train), shards(tmp_path / "validation", watched)
    return {f.code: f for f in audit_shards([folders[0]], folders[1], TOKENIZER)}


def test_good_shards_have_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path, [[5, 6, END], [7, END]], [[8, END]]) == {}


def test_documents_that_are_watched_and_trained_on_refuse(tmp_path: Path) -> None:
    found = findings(tmp_path, [[5, 6, END], [7, END]], [[7, END], [8, END]])
    assert (found["leaked"].share, found["leaked"].refuses) == (0.5, True)


def test_documents_that_stand_there_twice_or_never_end_warn(tmp_path: Path) -> None:
    found = findings(tmp_path, [[5, 6], [5, 6], [7, END]], [[8, END]])
    assert (found["repeated"].refuses, found["never_ends"].refuses) == (False, False)
    assert found["never_ends"].message.startswith("67% of the documents do not end with a special token")
