"""Programs of networks whose weights stay as they are: written once, found again by whoever runs the same network.

A program is a second copy of the weights. It is kept as long as its network, and written anew when a layer or a weight
was replaced or changed in place since.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from danlu.models.native.kernels import Kernels
from danlu.models.native.program import write_program
from danlu.models.native.writer import Program
from danlu.models.network import Tower


@dataclass(frozen=True)
class _Known:
    program: Program
    state: tuple[int, ...]
    kept: list[object]
    """What the numbers of ``state`` belong to: while it lives nothing else has them."""


_known: WeakKeyDictionary[Tower, _Known] = WeakKeyDictionary()
_lock = threading.Lock()


def program_of(kernels: Kernels, tower: Tower, head: nn.Module | None) -> Program:
    """The program of a tower and its head, which are always asked for together. Raises Unsupported."""
    with _lock:
        state, kept = state_of(tower)
        found = _known.get(tower)
        if found is None or found.state != state:
            _known.pop(tower, None)
            found = _Known(write_program(kernels, tower, head), state, kept)
            _known[tower] = found
        return found.program


def state_of(tower: Tower) -> tuple[tuple[int, ...], list[object]]:
    """Which layers and tensors a network has and how often each was written to: numbers, and what they belong to."""
    numbers: list[int] = []
    kept: list[object] = []
    for module in itertools.islice(tower.modules(), 1, None):  # without itself: nothing here may keep it alive
        kept.append(module)
        numbers.append(id(module))
        for tensor in itertools.chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None:
                kept.append(tensor)
                numbers += (id(tensor), _version(tensor))
    return tuple(numbers), kept


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
