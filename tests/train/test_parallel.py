"""Several processes learn what one learns, whole weights or spread ones, and their gradients are sums."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from danlu.train.checkpoint import load_together
from danlu.train.parallel import Reducer
from danlu.train.world import World
from tests.train.rank_sft import CASES, KINDS, LARGE, losses, run, save
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


# ---- fine-tuning, crashed on the way or not --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def tuned(tiny_folder: Path, place: Path) -> list[dict[str, Any]]:
    """What each of two processes answers for every case; the first leaves curves and weights in ``place``."""
    ended = run_ranks(2, "finetune_all", str(tiny_folder), str(place))
    assert [process.status for process in ended] == [0, 0], ended
    return list(lines([process.output for process in ended]))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_fine_tune_as_one_does(
    case: str, tiny_folder: Path, place: Path, tuned: list[dict[str, Any]]
) -> None:
    work = place / f"{case}-alone"
    model, expected = run(tiny_folder, work, CASES[case], ALONE)
    save(model, CASES[case], work)
    (file,) = (place / f"{case}-alone-saved").glob("*.safetensors")
    alone = load_file(file)
    for kind in KINDS:
        first, second = (answer[f"{case}-{kind}"] for answer in tuned)
        assert first == second
        assert first == {**expected, "crashed": True, "validation_loss": pytest.approx(expected["validation_loss"])}
        assert losses(place / f"{case}-{kind}") == pytest.approx(losses(work), abs=1e-5)
        together = load_file(place / f"{case}-{kind}-saved" / file.name)
        assert together.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, atol=1e-4, rtol=1e-4, msg=f"{kind} {name}")


def test_spread_weights_take_the_steps_of_whole_ones_bit_by_bit(place: Path, tuned: list[dict[str, Any]]) -> None:
    """In bf16 and with 8-bit moments too; one process alone rounds other sums, as with other micro-batches."""
    assert tuned
    assert losses(place / "coarse-fsdp") == losses(place / "coarse-ddp")


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_from_what_two_have_saved(
    kind: Any, tiny_folder: Path, place: Path, tuned: list[dict[str, Any]]
) -> None:
    """The checkpoint of step 8 of 8, then four steps more."""
    assert tuned
    longer = dataclasses.replace(CASES["full"], steps=12)
    longer_alone = dataclasses.replace(longer, parallel=kind)
    run(tiny_folder, place / f"full-{kind}", longer_alone, ALONE)
    found = losses(place / f"full-{kind}")
    assert len(found) == 12
    assert all(loss < found[0] for loss in found[8:])


def test_a_process_that_runs_out_of_memory_halves_what_it_does_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    ended = run_ranks(2, "finetune_cramped", str(tiny_folder), str(tmp_path), "ddp")
    assert [process.status for process in ended] == [0, 0], ended
    run(tiny_folder, tmp_path / "roomy", LARGE, ALONE)
    assert losses(tmp_path / "cramped-ddp") == pytest.approx(losses(tmp_path / "roomy"), abs=1e-4)


def test_where_weights_are_spread_running_out_of_memory_says_what_to_do(tiny_folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(2, "finetune_cramped", str(tiny_folder), str(tmp_path), "fsdp", timeout_s=20.0)
    assert (first.status, second.status) == (1, 1)
    assert "error: Memory ran out in step 1, and spread weights cannot take it in smaller parts. " in second.errors
    assert "Give micro_tokens" in second.errors
    assert "error: Process 0 of 2 lost another one" in first.errors
