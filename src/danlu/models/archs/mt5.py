"""mT5 (Xue et al. 2021): T5 1.1 in many languages; a head of its own, nothing scaled."""

from __future__ import annotations

from danlu.models.archs._keys import Keys
from danlu.models.archs.t5 import T5
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.network import HeadConfig


class MT5(T5):
    """Maps mT5 checkpoints onto the core."""

    model_type = "mt5"
    is_gated = True

    def _head(self, keys: Keys) -> HeadConfig:
        """Configs of transformers 5 say tied whatever the checkpoint has, so it is the checkpoint that decides."""
        keys.harmless("tie_word_embeddings", "scale_decoder_outputs")
        return LMHeadConfig(vocabulary_size=keys.integer("vocab_size"), tied=False)


plugin = MT5()
