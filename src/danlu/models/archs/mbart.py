"""mBART (Liu et al. 2020): BART in many languages, norms at the input of each branch and one at the end."""

from __future__ import annotations

from typing import ClassVar

from danlu.models.archs._seq2seq import Seq2Seq
from danlu.models.block import NormPlace


class MBart(Seq2Seq):
    """Maps mBART checkpoints onto the core."""

    model_type = "mbart"
    norm_at: ClassVar[tuple[NormPlace, ...]] = ("input",)
    final_norm = True


plugin = MBart()
