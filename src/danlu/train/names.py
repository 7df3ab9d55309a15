"""What a person calls a weight: whole parts of its name in our network or in the checkpoint. Knows no method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from danlu.core.errors import ConfigError, nearest
from danlu.models.model import Model


def means(pattern: str, name: str) -> bool:
    """Whether ``pattern`` is a run of whole parts of a dotted name: head, blocks.3 and *norm mean
    stack.blocks.3.head.q_norm; norm does not. A * stands for anything."""
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def select(model: Model, patterns: Sequence[str], field: str) -> dict[str, nn.Parameter]:
    """The parameters that any of ``patterns`` means, by the names of ``network.named_parameters()``.

    A tied weight goes by the names of both its uses. ``field`` is what the patterns are called in errors: a
    ConfigError when one means nothing, or one projection of several that are one matrix.
    """
    chosen: dict[str, nn.Parameter] = {}
    known = _known_names(model)
    for name, parameter in model.network.named_parameters():
        ours, theirs = known[name]
        if any(means(pattern, one) for pattern in patterns for one in ours):
            chosen[name] = parameter
            continue
        for names in theirs:
            hit = [one for one in names if any(means(pattern, one) for pattern in patterns)]
            if len(hit) == len(names):
                chosen[name] = parameter
            elif hit:
                rest = ", ".join(one for one in names if one not in hit)
                raise ConfigError(
                    f"{field} means {hit[0]}, which is one matrix with {rest}.", f"Name all of them, or {ours[0]}."
                )
    for pattern in patterns:
        _check_known(model, pattern, field, known.values())
    return chosen


def _known_names(model: Model) -> dict[str, tuple[list[str], list[tuple[str, ...]]]]:
    """Name of a parameter → all names of ours (two when it is tied), and the checkpoint's, fused ones together."""
    weights = model.architecture.weights(model.config)
    copies = model.architecture.copies(model.config)
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    known: dict[str, tuple[list[str], list[tuple[str, ...]]]] = {name: ([], []) for name in names.values()}
    for alias, parameter in model.network.named_parameters(remove_duplicate=False):
        ours, theirs = known[names[id(parameter)]]
        ours.append(alias)
        source = weights.get(alias)
        if source is not None:
            theirs.append(source.names)
            theirs += [(copy,) for copy, original in copies.items() if original in source.names]
    return known


def _check_known(
    model: Model, pattern: str, field: str, known: Iterable[tuple[list[str], list[tuple[str, ...]]]]
) -> None:  # fmt: skip
    """Raise ConfigError when a pattern means no parameter, and say so when it means an 8-bit weight."""
    names = [name for ours, theirs in known for name in [*ours, *(one for group in theirs for one in group)]]
    if any(means(pattern, name) for name in names):
        return
    buffers = [name for name, _ in model.network.named_buffers()]
    sources = model.architecture.weights(model.config)
    int8 = [name for name in buffers if name in sources and model.scheme is not None]
    if any(means(pattern, one) for name in int8 for one in (name, *sources[name].names)):
        raise ConfigError(
            f"{field} has {pattern!r}, whose weights are 8-bit numbers here.",
            "They cannot train; start from the plain model.",
        )
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    raise ConfigError(f"{field} has {pattern!r}, which means no weight of this model.", nearest(pattern, parts))
