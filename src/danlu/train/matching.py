"""Hidden states of a student held to those of its teacher, block by block (Romero et al. 2015; Jiao et al. 2020).

Knows no data, and of the rest of the loss nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.models.model import Model
from danlu.train.losses.distil import hidden_loss
from danlu.train.student import even_layers
from danlu.train.teacher import LiveTeacher, Teacher


class Matching:
    """Blocks of the student and those of the teacher they are held to, with projections where widths differ."""

    def __init__(self, model: Model, teacher: Teacher, *, is_cosine: bool) -> None:
        """Puts the projections into the student's network, where weights that train have to be, until ``remove``."""
        assert isinstance(teacher, LiveTeacher), "kept answers have no hidden states"
        self._network, self._is_cosine = model.network, is_cosine
        self.mine = tuple(range(model.config.num_layers))
        self.theirs = even_layers(model.config.num_layers, teacher.model.config.num_layers)
        width, target = model.config.width, teacher.model.config.width
        self._projections: list[nn.Linear] = []
        if width != target:
            self._projections = [nn.Linear(width, target, bias=False, device=model.device) for _ in self.mine]
            model.network.add_module("projections", nn.ModuleList(self._projections))

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains beside the student, by its name in the network."""
        return {
            f"projections.{number}.{name}": weight
            for number, one in enumerate(self._projections)
            for name, weight in one.named_parameters()
        }

    def distance(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """States (M, D) and (M, D') of the matched blocks → scalar sum over tokens of the mean over blocks."""
        projections = self._projections or [None] * len(mine)
        apart = [
            hidden_loss(one, other, project, is_cosine=self._is_cosine)
            for one, other, project in zip(mine, theirs, projections, strict=True)
        ]
        return torch.stack(apart).mean()

    def remove(self) -> None:
        """Leave the student as it would be without a teacher."""
        if self._projections:
            del self._network.projections
