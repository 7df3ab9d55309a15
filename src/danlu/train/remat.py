"""Activation checkpointing: keep less of the forward pass and compute it again going backward (Chen et al. 2016).

Works for every block, whatever mixes its tokens, in one process or many; adapters inside get their gradients. Knows no
task and no data.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.models.block import Block

RematMode = Literal["none", "half", "full"]
"""none: keep everything; half: every second block is computed again; full: every block, of which its input is kept."""


def checkpoint_blocks(network: nn.Module, mode: RematMode) -> int:
    """Make blocks forget what going backward can compute again; returns how many do. "none" undoes it.

    Call it before weights are spread over processes. Gradients are the same: random numbers (dropout) are drawn again
    alike. Without gradients nothing changes. Keeping matrix products and computing only the rest again was tried too:
    it keeps as much as "half" and takes as long.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for block in blocks:
        block.__dict__.pop("forward", None)
    chosen = {"none": [], "half": blocks[::2], "full": blocks}[mode]
    for block in chosen:
        vars(block)["forward"] = functools.partial(_forgetful, block)
    return len(chosen)


def _forgetful(block: Block, *arguments: Any) -> Tensor:
    """``block.forward``, keeping nothing but its arguments."""
    forward = functools.partial(Block.forward, block)
    if not torch.is_grad_enabled():
        return forward(*arguments)
    result: Any = checkpoint(forward, *arguments, use_reentrant=False)  # the reentrant kind loses adapters' gradients
    return result
