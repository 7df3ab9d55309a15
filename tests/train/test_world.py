"""Processes that meet, talk, lose each other, and meet over a network that is not this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from danlu.core.errors import ConfigError
from danlu.train.world import World
from tests.train.rank_work import lines
from tests.train.ranks import run_ranks

RANKS = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
CPU = torch.device("cpu")


def test_without_torchrun_a_process_is_a_world_of_its_own():
    with World.from_environment({}, device=CPU) as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        assert world.sum([1, 2.5]) == world.max([1, 2.5]) == [1.0, 2.5]
        assert world.gather_json({"a": 1}) == [{"a": 1}]
        assert world.share_json([1]) == [1]
        assert not torch.distributed.is_initialized()


def test_torchrun_says_who_one_is():
    world = World.from_environment(RANKS, device=CPU)
    assert (world.rank, world.size, world.local_rank, world.is_first) == (1, 4, 1, False)
    assert (world.address, world.backend) == ("node-0:29500", "gloo")


def test_the_backend_follows_the_device():
    assert World(device=torch.device("cuda", 0)).backend == "nccl"


def test_half_of_torchruns_variables_are_refused():
    with pytest.raises(ConfigError, match=r"RANK is set, but WORLD_SIZE is missing\. Start several processes with"):
        World.from_environment({"RANK": "0"})
    with pytest.raises(ConfigError, match="RANK is set, but MASTER_PORT is 'abc'"):
        World.from_environment({**RANKS, "MASTER_PORT": "abc"})


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"Process 1 of this machine has no GPU: there are 1\. Start as many"):
        World.from_environment(RANKS, device=torch.device("cuda"))


def test_processes_add_up_and_tell_each_other():
    ended = run_ranks(2, "talk")
    assert [process.status for process in ended] == [0, 0], ended
    for answer in lines([process.output for process in ended]):
        assert answer["sum"] == [2.0, 1.0, 2 * 2.0**40]
        assert answer["max"] == [1.0, 0.0]
        assert answer["gathered"] == [{"rank": rank, "text": "é" * rank} for rank in range(2)]
        assert answer["shared"] == {"from": 0}
        assert answer["tensor"] == [0.0, 0.0]


def test_when_one_process_does_not_answer_the_other_says_so(tmp_path: Path):
    first, second = run_ranks(2, "count_up", str(tmp_path), "hangs_briefly", timeout_s=5)
    assert (first.status, second.status) == (1, 1)
    assert "error: Process 0 of 2 lost another one, which ended or stopped answering: " in first.errors
    assert "The same command goes on from the last checkpoint." in first.errors


def test_processes_that_do_not_meet_say_where_they_waited():
    (alone,) = run_ranks(1, "talk_to_nobody", timeout_s=1)
    assert alone.status == 1
    assert "error: The 2 processes of this run did not meet at 127.0.0.1:" in alone.errors
    assert "Were all started, and can every machine reach that address?" in alone.errors


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two hosts with an address each and a cable between them; names of their network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the ip command")
    names = [f"danlu{os.getpid()}-{host}" for host in (1, 2)]
    try:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        for command in (
            f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}",
            *(f"-n {name} addr add 10.77.0.{host}/24 dev cable" for host, name in enumerate(names, start=1)),
            *(f"-n {name} link set {device} up" for name in names for device in ("cable", "lo")),
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_hosts_meet_over_the_cable_between_them(hosts: list[str]):
    ended = run_ranks(2, "talk", address="10.77.0.1", prefixes=[["ip", "netns", "exec", name] for name in hosts])
    assert [process.status for process in ended] == [0, 0], ended
    for answer in lines([process.output for process in ended]):
        assert answer["sum"] == [2.0, 1.0, 2 * 2.0**40]
        assert answer["interface"] == "cable"
