"""Log-probabilities of completions: those of transformers, row by row, however rows are packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu.text.chat import RenderedChat
from danlu.train.losses.completions import read_completions

from ...models.peer import save_llama, some_ids
from ..chats import fresh

pytestmark = pytest.mark.usefixtures("one_thread")


def row(length: int, prompt: int, seed: int) -> RenderedChat:
    return RenderedChat(some_ids(12, seed=9)[:10] + some_ids(length, seed), [i >= prompt for i in range(10 + length)])


ROWS = [row(5, 11, 1), row(20, 25, 2), row(1, 10, 3), row(9, 18, 4)]


def test_they_are_those_of_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m")
    found = read_completions(fresh(tmp_path / "m").network, ROWS, temperature=0.8)
    expected: list[float] = []
    for one in ROWS:
        with torch.no_grad():
            logprobs = (peer(torch.tensor([one.ids])).logits[0] / 0.8).log_softmax(-1)
        places = [i for i, learnt in enumerate(one.is_answer) if learnt]
        expected += [float(logprobs[i - 1, one.ids[i]]) for i in places]
    assert found.tokens.logprobs.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.counts == tuple(sum(one.is_answer) for one in ROWS)
    assert found.num_tokens == sum(len(one.ids) for one in ROWS)
    assert found.sums()[0].item() == pytest.approx(sum(expected[: found.counts[0]]), rel=1e-4)
    assert found.means()[0].item() == pytest.approx(sum(expected[: found.counts[0]]) / found.counts[0], rel=1e-4)


@pytest.mark.parametrize("chunk_rows", [1, 3])
def test_any_packing_says_the_same(tiny_folder: Path, chunk_rows: int) -> None:
    network = fresh(tiny_folder).network
    together = read_completions(network, ROWS, chunk_rows=chunk_rows).sums()
    alone = torch.cat([read_completions(network, [one]).sums() for one in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
