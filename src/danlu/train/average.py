"""An exponential moving average of weights, to validate and to serve. Knows no optimiser and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.train.named_state import copy_named

_NUM_UPDATES = "num_updates"


class WeightAverage:
    """avg_t = Σ d^(t-i) w_i (1 - d) / (1 - d^t), i = 1 … t: Polyak's average with decay d and Adam's bias correction.

    The correction is made as it goes: avg += (w - avg) (1 - d) / (1 - d^t). So the first update takes the weights as
    they are, the initial ones leave no trace, and the average can be used at any time. Kept in fp32.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """``parameters`` are fp32 (masters), by name; they may be DTensors."""
        assert 0.0 < decay < 1.0, f"decay is {decay}"
        self._parameters = dict(parameters)
        self._decay = decay
        self._updates = torch.zeros((), dtype=torch.int64)
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step of the optimiser."""
        self._updates += 1
        share = (1.0 - self._decay) / (1.0 - self._decay ** int(self._updates))
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach(), share)

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name, not copied; before the first update the weights at the start."""
        return dict(self._averages)

    @contextmanager
    def swapped(self, after_exchange: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Inside the block the parameters hold their averages; no second copy of all weights is made.

        ``after_exchange`` is called after each of both exchanges: a bf16 network takes its masters' numbers there.
        """
        self._exchange()
        after_exchange()
        try:
            yield
        finally:
            self._exchange()
            after_exchange()

    def state_tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name, not copied."""
        return {**self._averages, _NUM_UPDATES: self._updates}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_tensors``; TrainError when it is of other weights."""
        copy_named(self.state_tensors(), tensors, "average of weights")

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self._averages.items():
            parameter = self._parameters[name]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
