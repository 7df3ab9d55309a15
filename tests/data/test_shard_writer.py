from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.data.shard_writer import ShardConfig, ShardWriter
from danlu.data.shards import TokenShards
from tests.data.token_folders import random_documents, write_shards

DOCUMENTS = random_documents(40)
CONFIG = ShardConfig(shard_tokens=100)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def writer(folder: Path, vocabulary_size: int = 1000, config: ShardConfig = CONFIG) -> ShardWriter:
    return ShardWriter(folder, vocabulary_size=vocabulary_size, config=config)


def add_from(made: ShardWriter, stop: int = len(DOCUMENTS)) -> None:
    """Add what is left, and close the writer as it is."""
    with made:
        for number in range(made.next_document, stop):
            made.add(number, DOCUMENTS[number], text_bytes=10, characters=5)


def test_a_writer_that_stopped_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "whole") as whole:
        for number, ids in enumerate(DOCUMENTS):
            whole.add(number, ids, text_bytes=10, characters=5)
        whole.finish()
    for stop in (0, 1, 13, 14, 30, 40):
        add_from(writer(tmp_path / "cut"), stop)
    with writer(tmp_path / "cut") as last:
        assert 0 < last.next_document <= 40
        for number in range(last.next_document, 40):
            last.add(number, DOCUMENTS[number], text_bytes=10, characters=5)
        index = last.finish()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert (index.text_bytes, index.characters) == (400, 200)


SCRIPT = """
import sys
from pathlib import Path
from tests.data.test_shard_writer import DOCUMENTS, writer
made = writer(Path(sys.argv[1]))
for number in range(made.next_document, 10**9):
    made.add(number, DOCUMENTS[number % 40])
    print(number, flush=True)
"""


def test_a_writer_killed_anywhere_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(57):
        process.stdout.readline()
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    again = writer(tmp_path / "cut")
    assert again.next_document > 40
    total = again.next_document + 20
    for number in range(again.next_document, total):
        again.add(number, DOCUMENTS[number % 40])
    again.finish()
    write_shards(tmp_path / "whole", [DOCUMENTS[number % 40] for number in range(total)])
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_folder_is_not_finished_before_its_index(tmp_path: Path) -> None:
    add_from(writer(tmp_path))
    with pytest.raises(DataError, match="there is no index"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(("size", "config"), [(2000, CONFIG), (70_000, CONFIG), (1000, ShardConfig(shard_tokens=101))])
def test_other_settings_begin_anew_and_leave_nothing_of_the_old(tmp_path: Path, size: int, config: ShardConfig) -> None:
    add_from(writer(tmp_path))
    assert writer(tmp_path, size, config).next_document == 0
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    writer(tmp_path).finish()
    assert sorted(contents(tmp_path)) == ["index.json", "notes.txt"]


def test_a_lost_shard_begins_anew(tmp_path: Path) -> None:
    add_from(writer(tmp_path))
    (tmp_path / "tokens-00001.bin").unlink()
    assert writer(tmp_path).next_document == 0


def test_damaged_progress_is_named(tmp_path: Path) -> None:
    add_from(writer(tmp_path))
    (tmp_path / "progress.json").write_text(json.dumps({"next_document": 3}))
    with pytest.raises(DataError, match=r"progress\.json is damaged: .*Remove the folder to begin anew"):
        writer(tmp_path)


def test_documents_may_leave_gaps_for_other_writers(tmp_path: Path) -> None:
    made = writer(tmp_path)
    for number in range(0, 40, 2):
        made.add(number, DOCUMENTS[number])
    made.finish()
    assert [d.tolist() for d in TokenShards(tmp_path).documents()] == DOCUMENTS[::2]


def test_documents_out_of_order_are_the_callers_bug(tmp_path: Path) -> None:
    with writer(tmp_path) as made:
        made.add(3, [1])
        with pytest.raises(AssertionError, match="in order"):
            made.add(3, [1])
        with pytest.raises(AssertionError, match="one id at least"):
            made.add(4, [])


@pytest.mark.parametrize("wrong", [1000, -1])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(DataError, match=rf"Document 7 has the id {wrong}, but the vocabulary has 1000\. Is the tok"):
        writer(tmp_path).add(7, [1, wrong])


def test_a_shard_of_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shard_tokens is 0\. Use 1 or more"):
        ShardConfig(shard_tokens=0)
