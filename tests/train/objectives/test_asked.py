"""What a network is asked, written out for small rows; and that it is the same however a step is spread."""

from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.data.loader import Documents, LoaderConfig, TokenLoader, TokenRows, TokenSource
from danlu.models.attend import PackedAttend, row_positions
from danlu.train.objectives.asked import Asked, AskedBatches, join, next_tokens, summed_loss
from danlu.train.objectives.choose import Objective, choose
from danlu.train.objectives.denoise import DenoiseConfig
from danlu.train.objectives.masked import MaskedConfig
from danlu.train.objectives.spans import Pair, SpansConfig, fill_in
from danlu.train.objectives.tables import sentinels

from ..corpus import fresh, write_corpus

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES: list[tuple[str, Objective]] = [
    ("llama", None), ("bert", MaskedConfig()), ("t5", SpansConfig()), ("bart", DenoiseConfig())
]  # fmt: skip


def rows(*parts: list[int]) -> TokenRows:
    return TokenRows(np.array([i for part in parts for i in part]), np.array([len(part) for part in parts]))


def told(asked: Asked) -> list[tuple[list[int], list[int]]]:
    """Each row read, and what is told at each of its places."""
    ends = np.cumsum(asked.lengths)
    targets = dict(zip(asked.places.tolist(), asked.targets.tolist(), strict=True))
    return [
        (asked.ids[end - length : end].tolist(), [targets.get(i, -1) for i in range(end - length, end)])
        for end, length in zip(ends.tolist(), asked.lengths, strict=True)
    ]


def test_each_token_is_told_from_those_before_it() -> None:
    assert told(next_tokens(rows([5, 6, 7], [8, 9]))) == [([5, 6], [6, 7]), ([8], [9])]


def test_documents_are_told_from_their_first_token_on() -> None:
    assert told(next_tokens(rows([5, 6, 0], [8, 0]), 0)) == [([0, 5, 6], [5, 6, 0]), ([0, 8], [8, 0])]


def test_the_rest_of_a_document_has_no_first_token() -> None:
    asked = next_tokens(rows([5, 6, 0], [8, 0]), 0, first_goes_on=True)
    assert told(asked) == [([5, 6], [6, 0]), ([0, 8], [8, 0])]


def test_rows_of_one_token_are_left_out_where_nothing_can_be_told() -> None:
    assert told(next_tokens(rows([5], [6, 7]))) == [([6], [7])]
    assert next_tokens(rows([5])).ids.size == 0


def test_nothing_asked_is_no_loss() -> None:
    found = summed_loss(fresh().network, next_tokens(rows([5])))
    assert (float(found.total), found.count, found.tokens) == (0.0, 0, 0)


@pytest.mark.parametrize(("family", "objective"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_joined_questions_have_the_loss_and_gradients_of_each_alone(family: str, objective: Objective) -> None:
    """Packed equals unpacked: no row sees another."""
    model = fresh(family, spare_ids=20)
    network = model.network.requires_grad_(True)
    ask = choose(model, objective, 48, "packed").ask
    rng = np.random.default_rng(0)
    parts = [ask(rows(*[rng.integers(3, 200, size=n).tolist() for n in sizes]), rng) for sizes in ([9, 4], [17], [2])]

    def gradients(batches: list[Asked]) -> tuple[float, dict[str, torch.Tensor]]:
        network.zero_grad()
        losses = [summed_loss(network, batch) for batch in batches]
        sum(loss.total for loss in losses).backward()  # pyright: ignore
        found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        return sum(float(loss.total.detach()) for loss in losses), found

    one, packed = gradients([join(parts)])
    alone, unpacked = gradients(parts)
    assert one == pytest.approx(alone, rel=1e-5)
    assert packed.keys() == unpacked.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, unpacked[name], rtol=1e-3, atol=1e-5, msg=name)


def test_documents_of_a_sequence_do_not_see_each_other_unless_joined() -> None:
    """Another first document changes what is said of the second one only where they are one row."""
    network = fresh().network
    first, other, second = [5, 6, 7, 8], [9, 10, 11, 12], [20, 21, 22]

    def logits(sequence: TokenRows) -> torch.Tensor:
        asked = next_tokens(sequence)
        positions = row_positions(asked.lengths)
        with torch.no_grad():
            hidden = network(torch.from_numpy(asked.ids), positions, PackedAttend(asked.lengths))
            return network.logits(hidden)[-2:]

    assert torch.equal(logits(rows(first, second)), logits(rows(other, second)))
    assert not torch.allclose(logits(rows(first + second)), logits(rows(other + second)))


@pytest.mark.parametrize(("family", "objective"), FAMILIES, ids=[family for family, _ in FAMILIES])
@pytest.mark.parametrize("documents", ["packed", "chunked", "joined"])
def test_a_step_asks_the_same_on_any_number_of_ranks_and_micro_batches(
    tmp_path: Path, family: str, objective: Objective, documents: Documents
) -> None:
    chosen = choose(fresh(family, spare_ids=20), objective, 32, documents)
    shards = write_corpus(tmp_path / "s")

    def asked(step: int, ranks: int, micro_tokens: int | None) -> list[list[object]]:
        config = LoaderConfig(sequence_length=chosen.row_tokens, sequences_per_batch=6, documents=documents)
        loader = TokenLoader([TokenSource(shards=shards)], config, seed=5, micro_tokens=micro_tokens)
        batches = AskedBatches(loader, chosen.ask, seed=5, tokens_per_step=6 * 32)
        found = [
            one for rank in range(ranks) for part in batches.at(step, rank, ranks) for one in part
        ]  # fmt: skip
        return sorted([one.ids.tolist(), one.targets.tolist(), list(one.lengths)] for one in found)

    whole = asked(3, 1, None)
    assert len(whole) == 6
    assert asked(3, 1, 40) == asked(3, 2, None) == asked(3, 3, 64) == whole
    assert asked(4, 1, None) != whole


def test_what_is_hidden_differs_between_steps_that_see_the_same_row() -> None:
    ask = choose(fresh("bert"), MaskedConfig(), 48, "packed").ask
    row = rows(list(range(10, 40)))
    seen = {tuple(ask(row, np.random.default_rng([1, step, 0])).ids.tolist()) for step in range(8)}
    assert len(seen) == 8


def test_an_encoder_decoder_reads_the_spans_context_and_writes_them_to_its_end() -> None:
    model = fresh("t5", spare_ids=20)
    marks = sentinels(model)
    assert marks[:2] == (model.config.vocabulary_size - 1, model.config.vocabulary_size - 2)
    asked = choose(model, SpansConfig(), 48, "packed").ask(rows(list(range(10, 40))), np.random.default_rng(0))
    assert asked.source is not None
    (end,) = model.chat.tokenizer.end_ids
    start = model.theirs["decoder_start_token_id"]
    assert asked.source[-1] == asked.targets[-1] == end
    assert asked.ids.tolist() == [start, *asked.targets[:-1].tolist()]
    assert fill_in(Pair(asked.source[:-1], asked.targets[:-1]), marks).tolist() == list(range(10, 40))


def test_a_damaged_row_is_written_whole() -> None:
    asked = choose(fresh("bart"), DenoiseConfig(), 48, "packed").ask(
        rows(list(range(10, 40))), np.random.default_rng(0)
    )  # fmt: skip
    assert asked.source is not None
    assert asked.targets.tolist()[:-1] == list(range(10, 40))
    assert asked.source.size < 30
