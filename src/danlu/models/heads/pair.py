"""The pair head: how well each of some rows fits each of others (image and text, question and answer)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PairHeadConfig:
    """How cosines become logits."""

    kind: Literal["softmax", "sigmoid"] = "sigmoid"
    """softmax: one of the candidates fits (Radford et al. 2021); sigmoid: each may fit or not (Zhai et al. 2023)."""

    def make(self) -> PairHead:
        """The head."""
        return PairHead(self)


class PairHead(nn.Module):
    """exp(log_factor) · cosine, plus a bias for sigmoids. Starts as the papers do."""

    def __init__(self, config: PairHeadConfig) -> None:
        super().__init__()
        self.config = config
        is_sigmoid = config.kind == "sigmoid"
        self.log_factor = nn.Parameter(torch.tensor(math.log(10.0 if is_sigmoid else 1 / 0.07)))
        if is_sigmoid:
            self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Vectors of length 1: (B, P) and (C, P) → logits (B, C), in fp32 when these are."""
        logits = self.log_factor.float().exp() * (first @ second.t())
        return logits + self.bias if self.config.kind == "sigmoid" else logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) → (B, C) in fp32: of each second for a first; with sigmoids they need not sum to 1."""
        return logits.float().sigmoid() if self.config.kind == "sigmoid" else logits.float().softmax(dim=-1)


plugin = PairHeadConfig
