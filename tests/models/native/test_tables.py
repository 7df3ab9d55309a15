"""Tables by position hold what the layers of positions say, however far they reach."""

from __future__ import annotations

import torch
from torch import nn

from danlu.models.native.tables import Angles, Distances
from danlu.models.positions import RelativeBias, RelativeConfig, Rotary, RotaryConfig


def test_angles_are_those_of_rotary_positions_however_far_they_reach() -> None:
    kind = RotaryConfig(width=8)
    angles = Angles([kind])
    for count in (3, 700):
        angles.reach(count)
        table = angles.tables[0]
        assert table.shape[0] >= count
        cos, sin = Rotary(kind)(torch.tensor([count - 1]), torch.float32)
        torch.testing.assert_close(table[count - 1], torch.cat([cos[0, 0, :4], sin[0, 0, 4:]]))


def test_distances_are_those_of_the_relative_bias() -> None:
    bias = RelativeBias(RelativeConfig(num_buckets=8, max_distance=16), 3)
    nn.init.normal_(bias.weight)
    distances = Distances(bias)
    distances.reach(600)
    assert distances.table is not None
    expected = bias(torch.tensor([[-599, 0, 7]]))[:, 0]
    found = distances.table[:, torch.tensor([-599, 0, 7]) + distances.zero]
    assert torch.equal(found, expected)
    nothing = Distances(None)
    nothing.reach(9)
    assert nothing.table is None
