"""Muon (Jordan et al. 2024): momentum, made orthogonal matrix by matrix. For hidden matrices only. Knows no names.

An update is the momentum's nearest semi-orthogonal matrix, so that all its directions count alike. Its root mean
square would be 1 / √max(rows, columns); it is multiplied by 0.2 √max(rows, columns) (Liu et al. 2025, Moonlight), the
size of AdamW's updates, so that rate and decay of AdamW can be kept. Jordan's own factor is √max(1, rows / columns).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from danlu.core.device import compute_dtype
from danlu.train.sharded import like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial a x + b x³ + c x⁵ that drives singular values to about 1 (Jordan et al. 2024)."""
NUM_ITERATIONS = 5
_TINY = 1e-7
"""Smaller norms are taken for this one: a matrix of zeros stays zeros."""
_UPDATE_SIZE = 0.2
"""Root mean square of an update at rate 1."""
_MOST_VALUES = 1 << 24
"""Matrices of one shape are multiplied together, up to so many values at a time."""
_TOKENS_PER_SIDE = 20


def muon_state(parameter: Tensor) -> dict[str, Tensor]:
    """What Muon remembers of a matrix: 4 bytes a value."""
    return {"momentum_buffer": torch.zeros_like(parameter)}


def muon_step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    parts: Sequence[tuple[int, ...]],
    *,
    rate: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """One step for matrices (R, D), or (G, R, D) where each of G is a matrix of its own (experts).

    ``parts`` are the rows of each projection in each R: queries, keys and values in one matrix are three, and are made
    orthogonal one by one. Of a sharded matrix every process makes the whole update and keeps its rows.
    """
    updates: list[Tensor] = []
    for parameter, state in zip(parameters, states, strict=True):
        gradient, buffer = parameter.grad, state["momentum_buffer"]
        assert gradient is not None
        buffer.lerp_(gradient, 1.0 - momentum)
        update = gradient.lerp(buffer, momentum) if nesterov else buffer
        updates.append(whole(update.to(compute_dtype(parameter.device))))
    for update, rows in zip(updates, parts, strict=True):
        assert sum(rows) == update.shape[-2], f"parts {rows} are not the rows of {tuple(update.shape)}"
    pieces = [piece for update, rows in zip(updates, parts, strict=True) for piece in update.split(rows, dim=-2)]
    matrices = iter(_orthogonalize_all(pieces))
    for parameter, update, rows in zip(parameters, updates, parts, strict=True):
        scales = [_UPDATE_SIZE * math.sqrt(max(count, update.shape[-1])) for count in rows]
        step = torch.cat([next(matrices).to(parameter.dtype) * scale for scale in scales], dim=-2)
        parameter.mul_(1.0 - rate * weight_decay)
        parameter.add_(like(step, parameter), alpha=-rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration, in the type given: (K, m, n) with m ≤ n → (K, m, n) with singular values near 1.

    X ← a X + (b A + c A²) X with A = X Xᵀ, m × m, five times. In bf16 it takes a third of the time of fp32.
    """
    assert matrices.shape[-2] <= matrices.shape[-1], "the Gram matrix should be the small one"
    a, b, c = COEFFICIENTS
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = matrices / norms.clamp_min(_TINY).to(matrices.dtype)
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a I in the polynomial would cost half of bf16's precision
    return x


def _orthogonalize_all(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix (…, R, D) made orthogonal; those of one shape, up to transposition, together."""
    batches: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        batches[tuple(sorted(piece.shape[-2:]))].append(index)
    done: dict[int, Tensor] = {}
    for (small, large), indices in batches.items():
        flat = [_lying(pieces[index]).reshape(-1, small, large) for index in indices]
        stacked = torch.cat(flat).split(max(1, _MOST_VALUES // (small * large)))
        results = torch.cat([orthogonalize(matrices) for matrices in stacked])
        for index, result in zip(indices, results.split([len(matrices) for matrices in flat]), strict=True):
            shape = pieces[index].shape
            turned = result if shape[-2] <= shape[-1] else result.mT
            done[index] = turned.reshape(shape)
    return [done[index] for index in range(len(pieces))]


def _lying(matrix: Tensor) -> Tensor:
    """The matrix with its short side first."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def muon_pays(tokens_per_step: int, shapes: Iterable[Sequence[int]]) -> bool:
    """Whether Muon's products are few beside those of training: at least 20 m tokens a step.

    For a matrix m × n with m ≤ n, five iterations cost 5 (4 m² n + 2 m³) operations, a training step 6 m n a token: a
    share of (3.3 … 5) m / tokens, so at most a quarter. m is the mean over all matrices, weighted by their size.
    ``shapes`` are those of the hidden matrices, one for each projection. Experts see only their share of the tokens.
    """
    sizes = [(math.prod(shape), min(shape[-2:])) for shape in shapes]
    total = sum(size for size, _ in sizes)
    return bool(total) and tokens_per_step * total >= _TOKENS_PER_SIDE * sum(size * side for size, side in sizes)
