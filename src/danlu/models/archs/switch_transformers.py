"""Switch Transformers (Fedus et al. 2021): T5 with experts in some blocks, one of them a token."""

from __future__ import annotations

from danlu.models.archs._experts import expert_weights
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs.t5 import T5
from danlu.models.block import InnerConfig
from danlu.models.experts import ExpertsConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.weights import Source, rows


class Switch(T5):
    """Maps Switch checkpoints onto the core."""

    model_type = "switch_transformers"

    def feedforwards(self, keys: Keys, num_layers: int, *, is_decoder: bool) -> tuple[InnerConfig, ...]:
        """Experts in every so many blocks."""
        keys.fixed(router_ignore_padding_tokens=False)
        keys.harmless("add_router_probs", "router_z_loss_coef", "router_aux_loss_coef", "add_cross_attention")
        keys.harmless("encoder_sparse_step", "decoder_sparse_step")
        activation = keys.choice("dense_act_fn", ACTIVATIONS, "relu")
        width, dropout = keys.integer("d_ff"), keys.number("dropout_rate", 0.1)
        plain = FeedForwardConfig(width=width, activation=activation, gated=False, dropout=dropout)
        experts = ExpertsConfig(
            num_experts=keys.integer("num_experts"),
            top_k=1,
            width=width,
            activation=activation,
            gated=False,
            dropout=dropout,
            capacity=keys.integer("expert_capacity", 64),
            router_bias=keys.flag("router_bias", False),
            router_fp32=keys.choice("router_dtype", {"float32": True, "bfloat16": False}, "float32"),
            jitter=keys.number("router_jitter_noise", 0.01),
        )
        sparse = keys.integer(f"num_sparse_{'decoder' if is_decoder else 'encoder'}_layers", 3)
        step = num_layers // sparse if sparse else num_layers
        return tuple(experts if step and ((layer % step == 1) or step == 1) else plain for layer in range(num_layers))

    def feedforward_weights(self, ours: str, theirs: str, inner: InnerConfig) -> dict[str, Source]:
        """Names of one feed-forward layer, plain or experts."""
        if isinstance(inner, FeedForwardConfig):
            return {
                f"{ours}.up.weight": rows(f"{theirs}.mlp.wi.weight"),
                f"{ours}.down.weight": rows(f"{theirs}.mlp.wo.weight"),
            }
        assert isinstance(inner, ExpertsConfig)
        router = f"{theirs}.mlp.router.classifier"
        names = {f"{ours}.router.weight": rows(f"{router}.weight")}
        if inner.router_bias:
            names[f"{ours}.router.bias"] = rows(f"{router}.bias")
        return names | expert_weights(ours, f"{theirs}.mlp.experts.expert_{{}}", inner, ("wi",), "wo")


plugin = Switch()
