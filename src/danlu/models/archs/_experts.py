"""What decoders with experts have in common: names of weights, and the keys of Qwen's config.json."""

from __future__ import annotations

from collections.abc import Mapping

from danlu.models.archs import Architecture
from danlu.models.archs._decoder import decoder_weights
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.block import InnerConfig
from danlu.models.experts import ExpertsConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.network import ModelConfig
from danlu.models.weights import Source, rows


class ExpertDecoder(Architecture):
    """A family whose checkpoints are named as Llama's, with experts in the place of feed-forward layers."""

    prefix = "model."
    ignored = (r".*rotary_emb\.inv_freq",)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Queries, keys and values are one tensor of ours, and so are the experts of a layer."""
        return decoder_weights(config) | decoder_experts(config)

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.is_tied else {}


def decoder_experts(
    config: ModelConfig,
    *,
    layer: str = "model.layers.{}.mlp",
    into: tuple[str, ...] = ("gate_proj", "up_proj"),
    down: str = "down_proj",
) -> dict[str, Source]:
    """Names of router and experts in every block that has them; they replace those of a plain feed-forward layer."""
    names: dict[str, Source] = {}
    for index, wanted in enumerate(config.stack.layers):
        if isinstance(wanted.feedforward, ExpertsConfig):
            ours, theirs = f"stack.blocks.{index}.feedforward.inner", layer.format(index)
            names |= {f"{ours}.router.weight": rows(f"{theirs}.gate.weight")}
            names |= expert_weights(ours, f"{theirs}.experts.{{}}", wanted.feedforward, into, down)
            if wanted.feedforward.shared_width is not None:
                shared = f"{theirs}.shared_expert"
                names |= {
                    f"{ours}.shared.gate_up.weight": rows(*(f"{shared}.{x}.weight" for x in into)),
                    f"{ours}.shared.down.weight": rows(f"{shared}.{down}.weight"),
                    f"{ours}.shared_gate.weight": rows(f"{theirs}.shared_expert_gate.weight"),
                }
    return names


def expert_weights(
    ours: str, expert: str, config: ExpertsConfig, into: tuple[str, ...], down: str
) -> dict[str, Source]:  # fmt: skip
    """Names of the experts of one layer: checkpoints store each apart, we stack them, expert after expert."""
    experts = [expert.format(index) for index in range(config.num_experts)]
    gate_up = "gate_up" if config.gated else "up"
    return {
        f"{ours}.{gate_up}.weight": rows(*(f"{one}.{x}.weight" for one in experts for x in into)),
        f"{ours}.down.weight": rows(*(f"{one}.{down}.weight" for one in experts)),
    }


def qwen_feedforwards(keys: Keys, *, normalise: bool, has_shared: bool = False) -> list[InnerConfig]:
    """The feed-forward layer of each block: experts in every ``decoder_sparse_step``-th but for ``mlp_only_layers``.

    ``normalise`` is what the family assumes where the config does not say.
    """
    activation = keys.choice("hidden_act", ACTIVATIONS, "silu")
    plain = FeedForwardConfig(width=keys.integer("intermediate_size"), activation=activation)
    experts = ExpertsConfig(
        num_experts=keys.integer("num_experts", keys.get("num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        width=keys.integer("moe_intermediate_size"),
        activation=activation,
        normalise=keys.flag("norm_topk_prob", normalise),
        shared_width=keys.integer("shared_expert_intermediate_size") if has_shared else None,
        shared_gate=has_shared,
    )
    keys.harmless("output_router_logits", "router_aux_loss_coef")
    step, plain_ones = keys.integer("decoder_sparse_step", 1), keys.get("mlp_only_layers", [])
    return [
        experts if (layer + 1) % step == 0 and layer not in plain_ones else plain
        for layer in range(keys.integer("num_hidden_layers"))
    ]
