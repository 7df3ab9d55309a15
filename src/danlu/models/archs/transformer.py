"""The original Transformer (Vaswani et al. 2017), to learn from and to train: "Attention is all you need" as written.

Post-norm blocks with ReLU, sine and cosine positions side by side, and one table of tokens for source, target and the
logits, whose embeddings are scaled by √d_model (sections 3.1 to 3.5). It has no checkpoints on the hub, so its
config.json is our own:

    vocab_size                tokens of the one vocabulary
    d_model                   512     width of the residual stream
    num_heads                 8       heads of every attention
    d_ff                      2048    inner width of the feed-forward layers
    encoder_layers            6
    decoder_layers            6
    max_position_embeddings   512     most tokens of a source or a target
    dropout                   0.1     of embeddings and of every branch, in training
    decoder_start_token_id, eos_token_id, pad_token_id

Tensors have the names of BART's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from danlu.models.archs._keys import Keys
from danlu.models.archs._seq2seq import Positions, Seq2Seq
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.network import ModelConfig


class Transformer(Seq2Seq):
    """Maps the config above onto the core."""

    model_type = "transformer"
    embedding_norm = False
    positions: ClassVar[Positions] = "sinusoidal_interleaved"
    position_offset = 0

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that makes no sense."""
        keys = Keys(theirs)
        heads, inner = keys.integer("num_heads", 8), keys.integer("d_ff", 2048)
        like_bart = {
            "vocab_size": keys.integer("vocab_size"),
            "d_model": keys.integer("d_model", 512),
            "encoder_layers": keys.integer("encoder_layers", 6),
            "decoder_layers": keys.integer("decoder_layers", 6),
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": inner,
            "decoder_ffn_dim": inner,
            "max_position_embeddings": keys.integer("max_position_embeddings", 512),
            "activation_function": "relu",
            "scale_embedding": True,
            "dropout": keys.number("dropout", 0.1),
        }
        keys.done()
        config = super().read_config(like_bart)
        assert isinstance(config.head, LMHeadConfig)
        return replace(config, head=replace(config.head, bias=False))


plugin = Transformer()
