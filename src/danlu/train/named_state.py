"""State of optimisers and averages by name: what a checkpoint keeps, read back strictly. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from danlu.core.errors import TrainError
from danlu.train.sharded import like


@torch.no_grad()
def copy_named(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Put ``given`` into ``own`` in place; TrainError, with nothing changed, when names, shapes or types differ.

    Given tensors may be whole where ours are DTensors.
    """
    both = own.keys() & given.keys()
    wrong = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": sorted(name for name in both if own[name].shape != given[name].shape),
        "of another type": sorted(name for name in both if own[name].dtype != given[name].dtype),
    }
    if any(wrong.values()):
        found = "; ".join(
            f"{len(names)} {how} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
            for how, names in wrong.items()
            if names
        )
        raise TrainError(
            f"The checkpoint's {what} does not fit this run: {found}.",
            "The recipe has changed since; change it back, or remove the work folder to start again.",
        )
    for name, tensor in own.items():
        tensor.copy_(like(given[name].to(tensor.device), tensor))
