"""Data parallel: each process computes gradients of its share of the batch, and then all have the sum.

Two ways. ``ddp``: every process has all weights, and gradients are added up in fp32, bucket after bucket, while the
last micro-batch is still going backward (Li et al. 2020); the network is left as it is. ``fsdp``: weights, gradients
and optimiser state are spread over the processes (Zhao et al. 2023; see fsdp.py). Both give sums, never means: the
caller divides by the tokens of all processes. Knows no optimiser and no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danlu.train.weights import Weights
from danlu.train.world import World

ParallelKind = Literal["ddp", "fsdp"]
BUCKET_BYTES = 25 << 20
"""Gradients that travel together: few enough calls to be quick, small enough to start early."""


class Reduction(Protocol):
    """How gradients of several processes become one."""

    def before_first(self) -> None:
        """Call before a step's first micro-batch, also when the step is done again: nothing travels yet."""
        ...

    def before_last(self) -> None:
        """Call before the last micro-batch of a step goes forward: from here on gradients may travel."""
        ...

    def finish(self) -> None:
        """Call after the last micro-batch went backward: every master's ``grad`` is now the sum over all processes."""
        ...


def spread(
    network: nn.Module, trainable: Mapping[str, nn.Parameter], dtype: torch.dtype, world: World, kind: ParallelKind
) -> tuple[Weights, Reduction]:
    """Weights for this process's optimiser, and what adds their gradients up. Every process must call it alike.

    Call it after adapters, heads and ``checkpoint_blocks`` are in place and blocks are compiled, and before the
    optimiser is made. For ``ddp`` the network is on ``world.device``; for ``fsdp`` it may be on the CPU still.
    Trainable weights become those of the first process. With ``fsdp`` the caller must not keep ``trainable``, which
    would keep the whole weights.
    """
    world.share_(trainable.values())
    if kind == "fsdp" and world.size > 1:
        from danlu.train.fsdp import ShardedWeights

        sharded = ShardedWeights(network, trainable, dtype, world)
        return sharded, sharded
    weights = Weights(network, trainable, dtype)
    return weights, Reducer(world, weights.masters, trainable, list(weights.statistics.values()))


class Reducer:
    """Adds up the masters' gradients over all processes, in fp32, in buckets.

    Buckets travel in one order on every process, so ranks whose weights get no gradient (no tokens, experts that were
    not chosen) do no harm: they send zeros. What got no gradient anywhere keeps none. With one process nothing happens.
    """

    def __init__(
        self,
        world: World,
        masters: Mapping[str, nn.Parameter],
        watched: Mapping[str, nn.Parameter] | None,
        statistics: Sequence[Tensor] = (),
        *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """``watched`` are the network's own parameters by the same names: when the last of a bucket has its gradient,
        the bucket leaves. None: all leave in ``finish``. ``statistics`` become means of all processes'."""
        self._world = world
        self._masters = list(masters.values())
        self._statistics = [tensor for tensor in statistics if tensor.is_floating_point()]
        self._buckets = _buckets(masters, bucket_bytes) if world.size > 1 else []
        self._is_last = False
        self._next = 0
        self._waiting: list[int] = []
        self._sent: list[tuple[_Bucket, Tensor, Any]] = []
        if watched is not None and self._buckets:
            for number, bucket in enumerate(self._buckets):
                for name in bucket.names:
                    watched[name].register_post_accumulate_grad_hook(self._arrives_in(number))

    def before_first(self) -> None:
        """See ``Reduction``."""
        self._is_last = False

    def before_last(self) -> None:
        """See ``Reduction``."""
        self._is_last = True
        self._next = len(self._sent)  # some have left already when a step is done again for want of memory
        self._waiting = [len(bucket.names) for bucket in self._buckets]

    def finish(self) -> None:
        """See ``Reduction``."""
        if not self._is_last:  # this rank had nothing to learn from
            self.before_last()
        self._is_last = False
        while self._next < len(self._buckets):
            self._send()
        for bucket, flat, work in self._sent:
            work.wait()
            bucket.put_back(flat)
        self._sent.clear()
        if self._world.size > 1:
            for tensor in self._statistics:
                dist.all_reduce(tensor)
                tensor /= self._world.size

    def _arrives_in(self, number: int) -> Any:
        def arrived(_: Tensor) -> None:
            if not self._is_last:
                return
            self._waiting[number] -= 1
            while self._next < len(self._buckets) and self._waiting[self._next] == 0:
                self._send()

        return arrived

    def _send(self) -> None:
        bucket = self._buckets[self._next]
        flat = bucket.flat()
        self._sent.append((bucket, flat, self._world.sum_in_background(flat)))
        self._next += 1


class _Bucket:
    """Masters whose gradients travel as one tensor, each followed by a 1 if it has any."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.masters: list[nn.Parameter] = []
        self.size_bytes = 0

    def add(self, name: str, master: nn.Parameter) -> None:
        self.names.append(name)
        self.masters.append(master)
        self.size_bytes += master.nbytes

    def flat(self) -> Tensor:
        """All gradients in a row, zeros for none, then which there are."""
        parts = [m.new_zeros(m.numel()) if m.grad is None else m.grad.flatten() for m in self.masters]
        here = torch.tensor([float(m.grad is not None) for m in self.masters], device=self.masters[0].device)
        return torch.cat([*parts, here])

    def put_back(self, flat: Tensor) -> None:
        """The inverse of ``flat``; what no process has stays None."""
        *parts, here = flat.split([*(m.numel() for m in self.masters), len(self.masters)])
        for master, part, count in zip(self.masters, parts, here.tolist(), strict=True):
            master.grad = part.view_as(master) if count else None


def _buckets(masters: Mapping[str, nn.Parameter], most_bytes: int) -> list[_Bucket]:
    """Masters from last to first: about the order in which they get gradients."""
    buckets: list[_Bucket] = []
    for name, master in reversed(list(masters.items())):
        if not buckets or buckets[-1].size_bytes + master.nbytes > most_bytes:
            buckets.append(_Bucket())
        buckets[-1].add(name, master)
    return buckets
