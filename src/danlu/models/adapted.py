"""Adapters in torch: linears whose tokens each add what their own adapter says. Knows no files and no requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from danlu.models.adapters import Factors


class AdaptedLinears:
    """Adapters by number, 1 or more, and which tokens of the present pass use which.

    The network stays as it is: linears are listened to, and only those that some adapter changes.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """``dtype`` is that of hidden states; factors are kept in it."""
        self._network = network
        self._dtype = dtype
        self._adapters: dict[int, Factors] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._groups: list[tuple[Factors, Tensor | None]] = []
        self._num_tokens = 0

    def put(self, adapter: int, factors: Factors) -> None:
        """Set what an adapter adds, between passes; no factors empty it."""
        assert adapter > 0, "0 stands for no adapter"
        self._adapters.pop(adapter, None)
        if factors:
            self._adapters[adapter] = {name: self._ready(pair) for name, pair in factors.items()}
        needed = {name for held in self._adapters.values() for name in held}
        for name in self._handles.keys() - needed:
            self._handles.pop(name).remove()
        for name in needed - self._handles.keys():
            linear = self._network.get_submodule(name)
            self._handles[name] = linear.register_forward_hook(self._listener(name))

    def _ready(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Down and up turned, as products want them: (D, R), (R, O)."""
        device = next(self._network.parameters()).device
        down, up = (factor.to(device, self._dtype).t().contiguous() for factor in pair)
        return down, up

    @contextmanager
    def used(self, adapters: Sequence[int], counts: Sequence[int]) -> Iterator[None]:
        """A pass over rows laid end to end; each has one adapter, 0 for none, and so many tokens."""
        self._groups = self._grouped(adapters, counts)
        self._num_tokens = sum(counts)
        try:
            yield
        finally:
            self._groups = []

    def _grouped(self, adapters: Sequence[int], counts: Sequence[int]) -> list[tuple[Factors, Tensor | None]]:
        """The tokens of each adapter; None for all of them."""
        chosen = sorted(self._adapters.keys() & set(adapters))
        if len(chosen) == 1 and set(adapters) == set(chosen):
            return [(self._adapters[chosen[0]], None)]
        device = next(self._network.parameters()).device
        owner = torch.repeat_interleave(torch.tensor(adapters), torch.tensor(counts))
        return [(self._adapters[adapter], (owner == adapter).nonzero().squeeze(1).to(device)) for adapter in chosen]

    def _listener(self, name: str):
        def add(_: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
            for factors, tokens in self._groups:
                pair = factors.get(name)
                if pair is None:
                    continue
                x = given[0]
                assert x.shape[0] == self._num_tokens, f"{name} reads {tuple(x.shape)}, not one row a token"
                if tokens is None:
                    y = torch.addmm(y, x @ pair[0], pair[1])
                else:
                    y = y.index_add(0, tokens, x[tokens] @ pair[0] @ pair[1])
            return y

        return add
