"""Weights spread over all processes (FSDP2): each has some rows of every weight, its gradient and its optimiser state.

A block's weights are gathered, in the network's number type, when it is computed, and let go after it; its gradients
are added up in fp32, and each process gets those of its rows (Zhao et al. 2023). Masters are fp32 DTensors (see
sharded.py). Adapters, which keep fp32 and are small, and single numbers stay whole on every process. Knows no optimiser
and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from danlu.models.block import Block
from danlu.train.parallel import Reducer
from danlu.train.sharded import is_sharded, whole
from danlu.train.weights import Weights, adapters
from danlu.train.world import World

_ENTRIES = ("logits", "encode", "embed_images", "embed_texts")
"""Methods of networks, beside ``forward``, that read weights of the outermost group."""


class ShardedWeights(Weights):
    """Masters of which this process has some rows, and what adds their gradients up.

    The network computes only where every process computes: forward passes, backward passes and validations happen
    equally often on all of them, with no supervised tokens if need be.
    """

    def __init__(
        self, network: nn.Module, trainable: Mapping[str, nn.Parameter], dtype: torch.dtype, world: World
    ) -> None:
        """``trainable`` are parameters of ``network``, which is wrapped in place; do not keep them."""
        self.network = network
        self.statistics = {}
        self._copies, self._frozen = {}, {}
        self._world = world
        for parameter in trainable.values():
            parameter.data = parameter.data.float()
        _wrap(network, dtype, {p for p in network.parameters() if p.ndim == 0} | adapters(network), world)
        now = dict(network.named_parameters())
        self.masters = {name: now[name] for name in trainable}
        stay_whole = {name: master for name, master in self.masters.items() if not is_sharded(master)}
        self._reducer = Reducer(world, stay_whole, None)  # in ``finish``: their place among torch's messages is fixed
        self._synchronise(False)

    def before_first(self) -> None:
        """See ``Reduction``."""
        self._synchronise(False)

    def before_last(self) -> None:
        """See ``Reduction``."""
        self._synchronise(True)

    def finish(self) -> None:
        """See ``Reduction``."""
        self._synchronise(False)
        self._reducer.finish()

    def round(self) -> None:
        """Let go of weights that are still gathered: whoever reads them next gathers the masters' numbers of then."""
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def put_back(self) -> bool:
        """Give the first process's network its whole weights, in memory of the CPU, to be saved; on the others they are
        gone. A network that was spread does not compute after this. Tells whether all its weights are fp32."""
        state = full_state(self.network, self._world)
        for name, parameter in list(self.network.named_parameters(remove_duplicate=False)):
            if is_sharded(parameter):
                numbers = state[name] if self._world.is_first else torch.empty(parameter.shape, device="meta")
                owner, _, attribute = name.rpartition(".")
                setattr(self.network.get_submodule(owner), attribute, nn.Parameter(numbers, requires_grad=False))
        getattr(self.network, "tie", lambda: None)()
        return all(parameter.dtype == torch.float32 for parameter in self.network.parameters())

    def _synchronise(self, wanted: bool) -> None:
        cast(FSDPModule, self.network).set_requires_gradient_sync(wanted)


def _wrap(network: nn.Module, dtype: torch.dtype, stays: set[nn.Parameter], world: World) -> None:
    """Make each block a group that is gathered at once, and all that is left one more."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    settings: Any = {"mesh": world.mesh, "mp_policy": policy, "ignored_params": stays}
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        fully_shard(block, **settings)
    fully_shard(network, **settings)
    for entry in _ENTRIES:
        if hasattr(network, entry):
            register_fsdp_forward_method(network, entry)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, not means
            module.set_force_sum_reduction_for_comms(True)
    cast(FSDPModule, network).set_reduce_scatter_unused_params(True)  # a rank without tokens sends zeros


def full_state(network: nn.Module, world: World) -> dict[str, Tensor]:
    """All weights and buffers, whole, in memory of the CPU of the first process; empty on the others.

    One at a time is put together, so that no device ever has all of them. Every process must call it.
    """
    state: dict[str, Tensor] = {}
    done: dict[Tensor, Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor not in done:  # tied ones once
            one = whole(tensor)
            done[tensor] = one.detach().cpu() if world.is_first else tensor
        if world.is_first:
            state[name] = done[tensor]
    return state
