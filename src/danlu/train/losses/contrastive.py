"""Losses that draw together what belongs together: texts with answers, images with captions.

Every row is compared with every other, so a batch cannot simply be split. It need not be: ``loss_and_gradients`` takes
the loss of the whole batch on vectors alone, ``with_gradient`` then brings each micro-batch's share into its network
(Gao et al. 2021, GradCache). Each loss is a sum over rows to divide by their number. Knows no network.

    vectors = torch.cat([embed(rows).detach() for rows in micro_batches])
    loss, (gradients,) = loss_and_gradients(lambda v: info_nce(v, …), vectors)
    for rows, share in zip(micro_batches, gradients.split(…)):
        with_gradient(embed(rows), share).backward()
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize


def info_nce(
    queries: Tensor,
    documents: Tensor,
    *,
    temperature: float = 0.05,
    ignored: Tensor | None = None,
    both_ways: bool = False,
) -> Tensor:
    """Vectors of queries (B, P) and documents (C, P), C ≥ B → scalar sum over queries (van den Oord et al. 2018).

    Document i belongs to query i; all others, also hard negatives from B on, do not. ``ignored`` (B, C) is true where a
    document is not counted against a query (see ``false_negatives``). ``both_ways`` is the mean with the loss of each
    of the first B documents among the queries. Vectors are compared by their cosine.
    """
    return nce_of_logits(cosines(queries, documents) / temperature, ignored=ignored, both_ways=both_ways)


def nce_of_logits(logits: Tensor, *, ignored: Tensor | None = None, both_ways: bool = True) -> Tensor:
    """Logits (B, C) of rows that belong to the column of their number → scalar sum over rows.

    With ``both_ways`` the loss of CLIP (Radford et al. 2021, figure 3).
    """
    rows = torch.arange(logits.shape[0], device=logits.device)
    if ignored is not None:
        own = torch.zeros_like(ignored).index_put((rows, rows), torch.tensor(True, device=ignored.device))
        logits = logits.masked_fill(ignored & ~own, -torch.inf)
    loss = cross_entropy(logits, rows, reduction="sum")
    if not both_ways:
        return loss
    return (loss + cross_entropy(logits[:, : len(rows)].t(), rows, reduction="sum")) / 2


def sigmoid_of_logits(logits: Tensor, *, ignored: Tensor | None = None) -> Tensor:
    """Logits (B, B), each pair judged for itself → scalar sum, to divide by B (SigLIP, Zhai et al. 2023, eq. 1)."""
    sign = 2 * torch.eye(logits.shape[0], dtype=logits.dtype, device=logits.device) - 1
    losses = -logsigmoid(sign * logits)
    return (losses if ignored is None else losses.masked_fill(ignored & (sign < 0), 0.0)).sum()


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float = 0.2) -> Tensor:
    """Vectors (B, P) each → scalar sum: the positive's cosine shall be above the negative's by ``margin``."""
    anchor = normalize(anchors, dim=-1)
    gap = (anchor * (normalize(negatives, dim=-1) - normalize(positives, dim=-1))).sum(dim=-1)
    return torch.relu(gap + margin).sum()


def cosine_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Vectors (B, P) of pairs whose likeness (B,) is known, -1 to 1 → scalar sum of squared differences."""
    return ((normalize(first, dim=-1) * normalize(second, dim=-1)).sum(dim=-1) - scores).square().sum()


def matryoshka(
    loss: Callable[..., Tensor], *vectors: Tensor, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """A weighted sum of ``loss`` on the first ``dims`` numbers of the vectors (B, P): each is then useful alone
    (Kusupati et al. 2022, eq. 1). ``loss`` must compare by cosine, as those here do."""
    factors = [1.0] * len(dims) if weights is None else weights
    losses = [f * loss(*(v[:, :d] for v in vectors)) for d, f in zip(dims, factors, strict=True)]
    return torch.stack(losses).sum()


def false_negatives(queries: Sequence[Hashable], documents: Sequence[Hashable]) -> Tensor:
    """(B, C) bool: where a document must not count against a query, for it is the right answer to an equal one.

    ``documents`` are C ≥ B texts; those from B on belong to nobody. A query's own document is never ignored.
    """
    answers: dict[Hashable, set[Hashable]] = {}
    for query, document in zip(queries, documents, strict=False):
        answers.setdefault(query, set()).add(document)
    return torch.tensor(
        [
            [row != column and document in answers[query] for column, document in enumerate(documents)]
            for row, query in enumerate(queries)
        ],
        dtype=torch.bool,
    )


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(B, P) and (C, P) → (B, C), in fp32 or wider."""
    wide = torch.promote_types(first.dtype, torch.float32)
    return normalize(first.to(wide), dim=-1) @ normalize(second.to(wide), dim=-1).t()


def loss_and_gradients(loss: Callable[..., Tensor], *vectors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss of a whole batch's vectors (B, P), and its gradient with respect to each.

    What the loss trains besides (a scale, a bias) gets its gradient at once.
    """
    leaves = [v.detach().requires_grad_() for v in vectors]
    with torch.enable_grad():
        total = loss(*leaves)
    total.backward()  # pyright: ignore[reportUnknownMemberType]
    return total.detach(), tuple(torch.zeros_like(v) if v.grad is None else v.grad for v in leaves)


def with_gradient(vectors: Tensor, gradient: Tensor) -> Tensor:
    """Vectors (b, P) of a micro-batch → a scalar whose backward pass brings ``gradient`` (b, P) into their network.

    Its value means nothing; the loss is what ``loss_and_gradients`` gave.
    """
    return (vectors * gradient.to(vectors.dtype)).sum()
