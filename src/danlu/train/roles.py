"""What the parameters of a network are to an optimiser: hidden matrices, tables of embeddings, parts of fused matrices.

Knows no optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from danlu.models.grouped import GroupedLinear
from danlu.models.inputs.patches import PatchInput
from danlu.models.inputs.tokens import TokenEmbedding, TokenInput
from danlu.models.linear import rows_of_parts
from danlu.models.positions import RelativeBias

_TABLES = (TokenEmbedding, TokenInput, PatchInput, RelativeBias, nn.Embedding)
"""Modules whose own matrices are looked up, not multiplied with."""


@dataclass(frozen=True)
class Roles:
    """Names of a network's parameters by what they are; a tied head counts as its table."""

    hidden: frozenset[str]
    """Weights of the linears of blocks, experts included: matrices that turn hidden states into hidden states."""
    embeddings: frozenset[str]
    """Tables: a row for each token, place, type or distance."""
    parts: Mapping[str, tuple[int, ...]]
    """Rows of each projection in hidden matrices that hold several."""


def roles_of(network: nn.Module) -> Roles:
    """The roles of ``network``'s parameters, under the names of ``named_parameters``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    hidden: set[str] = set()
    embeddings: set[str] = set()
    parts: dict[str, tuple[int, ...]] = {}
    for path, module in network.named_modules():
        if isinstance(module, _TABLES):
            embeddings |= {names[p] for p in module.parameters(recurse=False) if p.ndim >= 2}
        elif isinstance(module, (nn.Linear, GroupedLinear)) and ".blocks." in f".{path}":
            name = names[module.weight]
            hidden.add(name)
            rows = module.parts if isinstance(module, GroupedLinear) else rows_of_parts(module)
            if len(rows) > 1:
                parts[name] = tuple(rows)
    return Roles(frozenset(hidden - embeddings), frozenset(embeddings), parts)
