"""BART (Lewis et al. 2020): the original Transformer with learnt positions, GELU and a norm over embeddings."""

from __future__ import annotations

from danlu.models.archs._seq2seq import Seq2Seq


class Bart(Seq2Seq):
    """Maps BART checkpoints onto the core."""

    model_type = "bart"


plugin = Bart()
