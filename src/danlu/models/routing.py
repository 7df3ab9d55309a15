"""How experts are used: recorded router logits, the losses that keep them in balance, and each expert's share.

Batches are packed, so that no padding is among the tokens. Knows routers only by their class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danlu.models.experts import Experts


@contextlib.contextmanager
def record_routing(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the logits (N, X) of every router that runs are put into the list, in the order in which they run.

    They keep their gradients:  with record_routing(network) as logits: …;  loss + 0.01 * load_balancing_loss(logits, k)
    """
    logits: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        logits.append(output)

    layers = [module for module in network.modules() if isinstance(module, Experts)]
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.router.register_forward_hook(keep).remove)
        yield logits


def load_balancing_loss(logits: Sequence[Tensor], top_k: int) -> Tensor:
    """X · Σ f · P, mean over layers (Fedus et al. 2021, equation 4, for ``top_k`` experts a token as in later models).

    f is the share of tokens that an expert gets and P the mean of its probability; ``top_k`` in perfect balance, and
    up to X when all tokens go to the same experts. Other implementations pool the tokens of all layers first; for that
    give one tensor with all of them.
    """
    losses: list[Tensor] = []
    for layer, shares in zip(logits, utilisation(logits, top_k), strict=True):
        mean = torch.softmax(layer, dim=-1, dtype=torch.float32).mean(dim=0)  # (X,)
        losses.append(layer.shape[-1] * top_k * (shares * mean).sum())
    return torch.stack(losses).mean()


def router_z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Mean of (log Σ exp logits)² over tokens, mean over layers: keeps logits small (Zoph et al. 2022, equation 5)."""
    return torch.stack([torch.logsumexp(layer.float(), dim=-1).square().mean() for layer in logits]).mean()


@torch.no_grad()
def utilisation(logits: Sequence[Tensor], top_k: int) -> list[Tensor]:
    """For each layer the share of choices that went to each expert, before any capacity: (X,), sums to 1."""
    shares: list[Tensor] = []
    for layer in logits:
        chosen = layer.topk(top_k, dim=-1).indices.flatten()
        shares.append(torch.bincount(chosen, minlength=layer.shape[-1]).float() / chosen.shape[0])
    return shares
