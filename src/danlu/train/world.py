"""The processes of a run: who I am, what we add up, and what happens when one of us ends.

One process is a world of its own and talks to nobody. More are started by torchrun (see launch.py), whose environment
says how they find each other; they meet over gloo on CPUs and over NCCL on GPUs. Objects never travel, only numbers and
JSON. Knows no model and no gradient (parallel.py), no file (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from traceback import clear_frames
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, its defaults would keep the group of then
from torch import Tensor
from torch.distributed import Work
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from danlu.core.device import pick_device
from danlu.core.errors import ConfigError, TrainError

TIMEOUT_S = 600.0
"""How long one process waits for the others: a rank that hangs is given up after this."""
_BROKEN = ("gloo", "connection closed", "connection reset", "timed out", "broken pipe", "nccl", "recv", "socket")
"""Words of torch's errors about processes that no longer answer."""
LOST = "lost another one"
"""Words of the error of a process that did not fail itself."""
_BACKGROUND, _MESH = "background", "mesh"
"""Names of the group that ``sum_in_background`` adds up in, and of the mesh."""
_SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among ``size``. Use as a context: it meets the others on entry and leaves them at the end."""

    rank: int = 0
    """Which one of all processes this is."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Which one of this machine's processes this is; the number of its GPU."""
    device: torch.device = field(default_factory=pick_device)
    """Where this process computes."""
    timeout_s: float = TIMEOUT_S
    """How long to wait for the others."""
    address: str = ""
    """Where the processes meet, host:port; empty for one process."""
    _held: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False, compare=False)
    """What knows torch's groups of these processes. Nobody else may keep one: see ``_leave``."""

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] = os.environ,
        *,
        device: torch.device | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> World:
        """What torchrun says; one process without it. ``device`` is None for a GPU of its own where there is one.

        Raises ConfigError when torchrun's variables are incomplete or there are fewer GPUs than processes.
        """
        if "RANK" not in environment:
            return cls(device=device or pick_device(), timeout_s=timeout_s)
        numbers: dict[str, int] = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
            try:
                numbers[name] = int(environment[name])
            except (KeyError, ValueError) as error:
                got = environment.get(name)
                raise ConfigError(
                    f"RANK is set, but {name} is {'missing' if got is None else repr(got)}.",
                    "Start several processes with danlu train --nproc N or torchrun, which set both.",
                ) from error
        device = device or pick_device()
        if device.type == "cuda":
            device = torch.device("cuda", numbers["LOCAL_RANK"])
            if numbers["LOCAL_RANK"] >= torch.cuda.device_count():
                raise ConfigError(
                    f"Process {numbers['LOCAL_RANK']} of this machine has no GPU: there are "
                    f"{torch.cuda.device_count()}.",
                    "Start as many processes as there are GPUs.",
                )
        return cls(
            rank=numbers["RANK"],
            size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            device=device,
            timeout_s=timeout_s,
            address=f"{environment.get('MASTER_ADDR', 'localhost')}:{numbers['MASTER_PORT']}",
        )

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress, writes logs and exports."""
        return self.rank == 0

    @property
    def backend(self) -> str:
        """What the processes talk through."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def __enter__(self) -> World:
        if self.size == 1:
            return self
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        elif (interface := _interface_towards(self.address.rpartition(":")[0])) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        timeout = timedelta(seconds=self.timeout_s)
        try:
            dist.init_process_group(
                self.backend,
                init_method="env://",
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
                device_id=self.device if self.device.type == "cuda" else None,
            )
            self._held[_BACKGROUND] = dist.new_group(timeout=timeout)
        except RuntimeError as error:
            raise TrainError(
                f"The {self.size} processes of this run did not meet at {self.address} within {self.timeout_s:g} s: "
                f"{_reason(error)}.",
                "Were all started, and can every machine reach that address?",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        lost = error if error is not None and _is_broken(error) else None
        if error is None:  # one that leaves while another still reads may abort it
            with contextlib.suppress(RuntimeError):  # it failed, and says so itself
                self.wait_for_all()
        if error is None or self.backend == "gloo":  # NCCL would wait for the process that failed
            if error is not None:
                clear_frames(error.__traceback__)  # what failed may have held a group
            self._leave(is_hurried=lost is not None)  # when one is lost, who started us ends us soon
        if lost is not None:
            raise TrainError(
                f"Process {self.rank} of {self.size} {LOST}, which ended or stopped answering: {_reason(lost)}.",
                "The log of the process that failed first says why. The same command goes on from the last checkpoint.",
            ) from error

    def _leave(self, *, is_hurried: bool) -> None:
        """End torch's groups, and the threads of gloo with them: a thread that is about to let go of a tensor when the
        interpreter ends aborts the process. A group ends when nothing refers to it any more."""
        if (mesh := self._held.get(_MESH)) is not None:
            mesh._pg_registry.clear()  # torch's tables of how to compute with spread tensors keep the mesh
        self._held.clear()
        dist.destroy_process_group()
        if not is_hurried:
            gc.collect()  # a network with spread weights holds one, in a cycle

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number added up over all processes, exactly enough for counts up to 2⁵³."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """The largest of each number over all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def sum_in_background(self, tensor: Tensor) -> Work:
        """Begin to add up a tensor of any shape over all processes, in place; ``wait`` of the result ends it.

        These sums follow each other alike on all processes, but anything else may be said between them.
        """
        work = dist.all_reduce(tensor, group=self._held[_BACKGROUND], async_op=True)
        assert work is not None
        return work

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in a row, for tensors that are spread over them."""
        if _MESH not in self._held:
            self._held[_MESH] = init_device_mesh(self.device.type, (self.size,))
        return self._held[_MESH]

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.size == 1:
            return [float(value) for value in values]
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers, operation)
        return numbers.tolist()

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every process, by rank."""
        if self.size == 1:
            return [value]
        mine = self._bytes_of(value)
        sizes = [int(size) for size in torch.cat(self._gathered(torch.tensor([mine.numel()], device=self.device)))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        padded[: mine.numel()] = mine
        parts = zip(self._gathered(padded), sizes, strict=True)
        return [json.loads(part[:size].cpu().numpy().tobytes()) for part, size in parts]

    def share_json(self, value: Any) -> Any:
        """The JSON value that the first process gives."""
        if self.size == 1:
            return value
        data = self._bytes_of(value if self.is_first else None)
        size = torch.tensor([data.numel()], device=self.device)
        dist.broadcast(size, 0)
        if not self.is_first:
            data = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return json.loads(data.cpu().numpy().tobytes())

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's numbers, in place, wherever they are."""
        if self.size > 1:
            for tensor in tensors:
                there = tensor.detach().to(self.device)  # one at a time, for the device may not have room for all
                dist.broadcast(there, 0)
                if there.device != tensor.device:
                    tensor.detach().copy_(there)

    def wait_for_all(self) -> None:
        """Go on when every process is here."""
        self.sum([0.0])

    def _bytes_of(self, value: Any) -> Tensor:
        return torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return parts


def _is_broken(error: BaseException) -> bool:
    """Whether an error is about a process that no longer answers, and not about our own numbers."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _BROKEN)


def _reason(error: BaseException) -> str:
    """What went wrong, without torch's source file before it and its advice after it."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^]]*\.(cc|cpp|h):\d+\] ", "", line).partition(". This is typically")[0][:200].rstrip(".")


def _interface_towards(host: str) -> str | None:
    """The network interface that leads to ``host``: gloo would take the one its own host name stands for, which on many
    machines is the loopback. None where the system does not tell."""
    try:
        import fcntl
    except ImportError:
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing; only chooses the way
        mine = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # interfaces without an IPv4 address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == mine:
                    return name
    return None
