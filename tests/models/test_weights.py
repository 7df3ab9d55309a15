"""Tensors of a checkpoint become ours and back without a number changing."""

from __future__ import annotations

import torch

from danlu.models.weights import Source, rows, turned


def numbers(*shape: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + torch.Size(shape).numel()).view(shape)


def test_projections_are_stacked_and_taken_apart_again() -> None:
    theirs = {"q": numbers(4, 3), "k": numbers(2, 3, first=50), "v": numbers(2, 3, first=90)}
    source = rows("q", "k", "v")
    whole = source.join(theirs.__getitem__, torch.Size((8, 3)))
    assert torch.equal(whole[4:6], theirs["k"])
    again = source.split(whole, (4, 2, 2))
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_a_turned_matrix_is_turned_both_ways() -> None:
    theirs = {"w": numbers(3, 5)}
    source = turned("w")
    ours = source.join(theirs.__getitem__, torch.Size((5, 3)))
    assert torch.equal(ours, theirs["w"].t())
    assert torch.equal(source.split(ours, ())["w"], theirs["w"])


def test_experts_are_stacked_and_taken_apart_again() -> None:
    names = [f"e{i}.{part}" for i in range(3) for part in ("gate", "up")]
    theirs = {name: numbers(2, 4, first=100 * i) for i, name in enumerate(names)}
    source = rows(*names)
    whole = source.join(theirs.__getitem__, torch.Size((3, 4, 4)))
    assert torch.equal(whole[1], torch.cat([theirs["e1.gate"], theirs["e1.up"]]))
    again = source.split(whole, (2, 2))
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_another_shape_on_disk_is_folded_both_ways() -> None:
    theirs = {"conv": numbers(4, 3, 2, 2)}
    source = Source(("conv",), shape=(4, 3, 2, 2))
    ours = source.join(theirs.__getitem__, torch.Size((4, 12)))
    assert ours.shape == (4, 12)
    assert torch.equal(source.split(ours, ())["conv"], theirs["conv"])
