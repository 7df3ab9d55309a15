"""Weights as the optimiser sees them: fp32 masters of a network that computes in another number type.

A bf16 network has too few digits to take small updates, so each trainable weight has an fp32 master: gradients are
added up there, micro-batch after micro-batch, the optimiser moves it, and the network gets it rounded. What is fp32 in
the network already (adapters do so) is its own master. Knows no method, no optimiser and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.core.errors import TrainError
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.lora import LoraLinear


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network that ask for a gradient, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


class Weights:
    """The trainable weights of a network, by name."""

    def __init__(self, network: nn.Module, trainable: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        """``trainable`` are parameters of ``network``. All others, and trainable ones but ``adapters``, become
        ``dtype``; the fp32 numbers of frozen ones are kept aside for ``put_back``."""
        assert trainable, "nothing to train"
        self.network = network
        self.masters: dict[str, nn.Parameter] = {}
        self._copies: dict[str, nn.Parameter] = {}
        self._lowered: set[str] = set()
        self._frozen: dict[nn.Parameter, Tensor] = {}
        stays = adapters(network)
        chosen = {parameter: name for name, parameter in trainable.items()}
        for parameter in network.parameters():
            name = chosen.get(parameter)
            lowers = parameter.dtype == torch.float32 and dtype != torch.float32 and parameter not in stays
            if name is None:
                if lowers:
                    self._frozen[parameter] = parameter.data
                    parameter.data = parameter.data.to(dtype)
            elif lowers or parameter.dtype != torch.float32:
                self.masters[name] = nn.Parameter(parameter.detach().float().clone() if not lowers else parameter.data)
                if lowers:
                    self._lowered.add(name)
                    parameter.data = parameter.data.to(dtype)
                self._copies[name] = parameter
                parameter.register_post_accumulate_grad_hook(_adding_to(self.masters[name]))
            else:
                self.masters[name] = parameter
        self.masters = {name: self.masters[name] for name in trainable}
        self.statistics = _statistics(network)

    def scale_gradients(self, factor: float) -> None:
        """Multiply what was added up: sums become means."""
        for master in self.masters.values():
            if master.grad is not None:
                master.grad *= factor

    def clear_gradients(self) -> None:
        """Forget what was added up."""
        for master in self.masters.values():
            master.grad = None
        for copy in self._copies.values():
            copy.grad = None

    @torch.no_grad()
    def round(self) -> None:
        """Give the network the masters' numbers."""
        for name, copy in self._copies.items():
            copy.copy_(self.masters[name])

    def put_back(self) -> bool:
        """Make the network fp32 again where it was, with what was learnt: before a model is saved. Tells whether the
        network's own weights are fp32 now."""
        for name in self._lowered:
            self._copies[name].data = self.masters[name].data
        for parameter, numbers in self._frozen.items():
            parameter.data = numbers
        return bool(self._lowered or self._frozen)

    def state(self) -> dict[str, Tensor]:
        """Masters and running statistics by name, not copied."""
        return {name: tensor.detach() for name, tensor in {**self.masters, **self.statistics}.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``; raises TrainError when it is of another network or method."""
        mine = self.state()
        wrong = sorted(mine.keys() ^ state.keys()) or [n for n, t in mine.items() if t.shape != state[n].shape]
        if wrong:
            raise TrainError(
                f"The checkpoint is of another network or method: {len(wrong)} weights differ, {wrong[0]} first.",
                "Remove the work folder to start again.",
            )
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.round()

    @contextmanager
    def replaced(self, numbers: Mapping[str, Tensor]) -> Iterator[None]:
        """The network with other numbers (an average, an earlier best) inside the block."""
        kept = {name: tensor.clone() for name, tensor in self.state().items()}
        self.load_state({**kept, **numbers})
        try:
            yield
        finally:
            self.load_state(kept)


def _adding_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to its master's in fp32 and frees it."""

    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return add


def adapters(network: nn.Module) -> set[nn.Parameter]:
    """Parameters of adapters, which keep fp32 and cast by themselves."""
    return {
        parameter
        for module in network.modules()
        if isinstance(module, (LoraLinear, LoraGroupedLinear))
        for name, parameter in module.named_parameters()
        if not name.startswith("base.")
    }


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    """What batch norms measure while they train."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.weight.requires_grad
        for key, buffer in module.named_buffers(recurse=False)
    }
