"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa under another name, with one vocabulary for a hundred languages."""

from __future__ import annotations

from danlu.models.archs.roberta import Roberta


class XLMRoberta(Roberta):
    """Maps XLM-RoBERTa checkpoints onto the core."""

    model_type = "xlm-roberta"


plugin = XLMRoberta()
