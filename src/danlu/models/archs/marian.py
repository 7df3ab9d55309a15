"""Marian (Junczys-Dowmunt et al. 2018) as in OPUS-MT: fixed positions, sines first; vocabularies may be two."""

from __future__ import annotations

from typing import ClassVar

from danlu.models.archs._seq2seq import Positions, Seq2Seq


class Marian(Seq2Seq):
    """Maps Marian checkpoints onto the core."""

    model_type = "marian"
    ignored = (r"model\.(encoder|decoder)\.embed_positions\.weight",)
    embedding_norm = False
    positions: ClassVar[Positions] = "sinusoidal"
    position_offset = 0


plugin = Marian()
