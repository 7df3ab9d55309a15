"""Several processes learn what one learns, whole weights or spread ones, and their gradients are sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.train.checkpoint import load_together
from danlu.train.parallel import Reducer
from danlu.train.world import World
from tests.train.rank_work import MODELS, lines, train
from tests.train.ranks import run_ranks

ALONE = World(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    """What the first of two processes answers for every case; both leave checkpoints in ``folder``."""
    ended = run_ranks(2, "train_all", str(folder))
    assert [process.status for process in ended] == [0, 0], ended
    first, second = lines([process.output for process in ended])
    assert all(first[case]["losses"] == second[case]["losses"] for case in first)
    assert all(first[case]["norms"] == second[case]["norms"] for case in first)
    return first


@pytest.mark.parametrize("case", MODELS)
def test_two_processes_learn_what_one_does(case: str, two: dict[str, Any], folder: Path):
    one = train(case, "ddp", ALONE)
    for kind in ("ddp", "fsdp"):
        assert two[f"{case}-{kind}"]["losses"] == pytest.approx(one.losses, abs=1e-5)
        assert two[f"{case}-{kind}"]["norms"] == pytest.approx(one.norms, rel=1e-4)
        assert two[f"{case}-{kind}"]["reloads"]
        checkpoint = load_together(folder / f"{case}-{kind}", ALONE)
        assert checkpoint is not None
        assert checkpoint.tensors.keys() == one.state.keys()
        for name, tensor in one.state.items():
            torch.testing.assert_close(checkpoint.tensors[name], tensor.detach(), atol=2e-3, rtol=2e-3, msg=name)


def test_the_first_process_gets_the_whole_network_back_to_save(two: dict[str, Any], folder: Path):
    network = train("decoder", "ddp", ALONE).network
    for kind in ("ddp", "fsdp"):
        whole = two[f"decoder-{kind}"]["whole"]
        assert whole.keys() == network.state_dict().keys()
        for name, tensor in network.state_dict().items():
            assert whole[name] == pytest.approx(float(tensor.double().square().sum()), rel=1e-3)


def test_one_process_alone_sends_nothing():
    master = torch.nn.Parameter(torch.ones(2))
    reduction = Reducer(ALONE, {"a": master}, {"a": master})
    (master * 3.0).sum().backward()
    reduction.before_last()
    reduction.finish()
    assert master.grad is not None
    assert master.grad.tolist() == [3.0, 3.0]
