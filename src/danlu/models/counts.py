"""What a model costs, by arithmetic on its config: parameters, memory, FLOPs and cache. Reads no weights and no files.

The definitions, which ``DEFINITIONS`` repeats for users:

- *Parameters* are trainable numbers, shared ones once; what batch norms measure is not among them. *Active* ones are
  those a token meets: of experts only as many as it is sent to. *Embedding* ones are tables that are looked up.
- *FLOPs* are two a multiplication and addition of matrix products (norms, activations and sums left out): for each
  token 2 for every active weight of a matrix, and 4 · H · E for every token it looks at. They are a mean over the
  tokens of a row of T, so a causal token looks at (T + 1) / 2. A pooled head works once a row. A recurrent layer costs
  4 for each number of its state. An encoder-decoder reads T tokens and writes T: a "token" is one of each.
- *Training* is three times forward: the backward pass makes two products of each one (Kaplan et al. 2020, section 2.1).
- *Memory* of weights: 4 or 2 bytes a number; int8: a byte for each weight of linears and token tables, 4 for each of
  their rows, the rest in fp32; q4_0: 18 bytes for 32 weights of a matrix, 34 in the head, the rest in fp32, as
  gguf_write.py has it.
- *Cache* is what answering needs: keys and values of each attention layer, within its window if it has one, and the
  fp32 states of recurrent layers. Danlu's own cache keeps the layers with a window whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from danlu.models.attention import AttentionConfig
from danlu.models.block import Stack
from danlu.models.experts import Experts
from danlu.models.grouped import GroupedLinear
from danlu.models.heads.lm import LMHead
from danlu.models.inputs.tokens import TokenEmbedding, TokenInput
from danlu.models.load import Makes, empty_network
from danlu.models.pair import PairNetwork
from danlu.models.positions import RelativeBias
from danlu.models.quant import can_quantize

DEFINITIONS = {
    "active": "parameters one token meets: of experts only those it is sent to",
    "flops": "2 a multiply-add of matrix products; mean over a row of the length given",
    "training": "3 × forward: the backward pass makes two products of each one",
    "cache": "keys and values within each layer's window, fp32 states of recurrent layers",
}
CACHE_BYTES = {"fp32": 4, "bf16": 2}
"""Number types of keys and values."""
_IMAGE_SIDE = 224
"""Pixels of the square image that a net without a size of its own is counted for."""


@dataclass(frozen=True, kw_only=True)
class CacheCounts:
    """What is kept of a row while it is answered."""

    bytes_per_token: dict[str, int]
    """By number type: what a token adds while no window is full."""
    bytes_at_context: dict[str, int]
    """By number type: a row as long as the context."""
    state_bytes: int
    """What recurrent layers keep of a row, however long."""
    memory_bytes_per_token: dict[str, int]
    """By number type: what a token of an encoder's memory adds."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model costs."""

    parameters: int
    """All of them, shared ones once."""
    active_parameters: int
    """Those a token meets."""
    embedding_parameters: int
    """Tables of tokens, positions and types."""
    memory_bytes: dict[str, int]
    """Of the weights, by number type."""
    length: int
    """Tokens of the row (or embeddings of the image) that FLOPs are counted for."""
    unit: str
    """What FLOPs are counted for: a token, or a whole image or pair."""
    forward_flops: int
    """One unit forward."""
    attention_flops: int
    """The part of it that is scores and their sums, which grows with the row."""
    training_flops: int
    """One unit forward and backward."""
    cache: CacheCounts | None
    """None for models that do not write token by token."""

    @property
    def other_parameters(self) -> int:
        """Parameters that are no embeddings."""
        return self.parameters - self.embedding_parameters


def count(config: Makes[nn.Module], length: int | None = None) -> Counts:
    """Build the model without memory and count it; ``length`` is the row for FLOPs, None for the whole context."""
    network = empty_network(config)
    main = network.text if isinstance(network, PairNetwork) else network
    stacks = [module for module in main.modules() if isinstance(module, Stack)]
    context = stacks[0].config.context_length
    length = context if length is None else length
    unique = {id(p): p for p in network.parameters()}
    flops = _flops(network, length)
    return Counts(
        parameters=sum(p.numel() for p in unique.values()),
        active_parameters=sum(p.numel() for p in unique.values()) - sum(_idle(network).values()),
        embedding_parameters=sum(p.numel() for p in _tables(network).values()),
        memory_bytes=memory_bytes(network),
        length=flops.length,
        unit=flops.unit,
        forward_flops=round(flops.whole),
        attention_flops=round(flops.attention),
        training_flops=round(3 * flops.whole),
        cache=_cache(stacks[0], context) if _writes(network, stacks) else None,
    )


def _tables(network: nn.Module) -> dict[int, Tensor]:
    """Parameters that are looked up, not multiplied: id → tensor."""
    found: dict[int, Tensor] = {}
    for module in network.modules():
        if isinstance(module, TokenInput):
            found |= {id(p): p for name, p in module.named_parameters() if not name.startswith("norm.")}
    return found


def _idle(network: nn.Module) -> dict[int, int]:
    """Parameters of experts that a token is not sent to: id → how many."""
    idle: dict[int, int] = {}
    for parameter, share in _expert_weights(network):
        idle[id(parameter)] = round(parameter.numel() * (1.0 - share))
    return idle


def _expert_weights(network: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Weights that have an expert as their first dimension, and the share of them that a token meets."""
    for module in network.modules():
        if isinstance(module, Experts):
            share = module.config.top_k / module.config.num_experts
            for layer in module.children():
                if isinstance(layer, GroupedLinear):
                    yield from ((parameter, share) for parameter in layer.parameters())


def memory_bytes(network: nn.Module) -> dict[str, int]:
    """Bytes of the weights by number type."""
    layers: dict[int, nn.Module] = {}
    for layer in network.modules():
        if can_quantize(layer):
            layers.setdefault(id(layer.weight), layer)  # of shared ones the first: the token table
    tensors = {id(t): t for t in network.state_dict(keep_vars=True).values()}
    heads = {id(head.linear.weight) for head in network.modules() if isinstance(head, LMHead)}
    sizes: dict[str, int] = dict.fromkeys(("fp32", "bf16", "int8", "q4_0"), 0)
    for key, tensor in tensors.items():
        numbers, is_real = tensor.numel(), tensor.is_floating_point()
        sizes["fp32"] += numbers * (4 if is_real else tensor.element_size())
        sizes["bf16"] += numbers * (2 if is_real else tensor.element_size())
        if key in layers:
            columns = tensor.shape[-1] if isinstance(layers[key], TokenEmbedding) else 0
            sizes["int8"] += numbers + 4 * tensor.shape[:-1].numel() + 4 * columns
        else:
            sizes["int8"] += 4 * numbers
        sizes["q4_0"] += _q4_bytes(tensor, is_head=key in heads)
    return sizes


def _q4_bytes(tensor: Tensor, *, is_head: bool) -> int:
    if tensor.dim() < 2:
        return 4 * tensor.numel()
    if tensor.shape[-1] % 32:
        return 2 * tensor.numel()
    return tensor.numel() // 32 * (34 if is_head else 18)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


class _Flops(NamedTuple):
    """Of one unit forward."""

    whole: float
    attention: float
    unit: str
    length: int


def _flops(network: nn.Module, length: int) -> _Flops:
    if isinstance(network, PairNetwork):
        image, token = _flops(network.image, length), _flops(network.text, length)
        text = (token.whole * length, token.attention * length)
        return _Flops(image.whole + text[0], image.attention + text[1], "pair", length)
    embedding = network.get_submodule("embedding")
    if isinstance(embedding, TokenInput):
        whole, attention = _row_flops(network, length, length)
        return _Flops(whole / length, attention / length, "token", length)
    side = getattr(embedding.config, "image_size", (_IMAGE_SIDE, _IMAGE_SIDE))
    image = torch.empty(1, embedding.config.channels, *side, device="meta")  # pyright: ignore
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding(image, torch.empty(0, dtype=torch.long, device="meta"))
    tokens = embedding.lengths(image)[0]  # pyright: ignore[reportCallIssue]
    whole, attention = _row_flops(network, tokens, tokens)
    return _Flops(whole + counter.get_total_flops(), attention, "image", tokens)


def _row_flops(network: nn.Module, length: int, memory: int) -> tuple[float, float]:
    """FLOPs of a row, inputs left out, and those of attention among them."""
    shares = {id(parameter): share for parameter, share in _expert_weights(network)}
    biases = {id(p) for m in network.modules() if isinstance(m, RelativeBias) for p in m.parameters()}
    products = attention = 0.0
    for name, module in network.named_modules():
        if isinstance(module, Stack):
            attention += _mixing(module, length, memory)
            weights = _matrices(module)
            tokens = length
        elif name == "head":
            weights = _matrices(module)
            tokens = 1 if hasattr(module.config, "pooling") else length
        else:
            continue
        products += sum(2 * tokens * w.numel() * shares.get(id(w), 1.0) for w in weights if id(w) not in biases)
    return products + attention, attention


def _matrices(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.dim() >= 2]


def _mixing(stack: Stack, length: int, memory: int) -> float:
    """FLOPs of scores, their sums and recurrent states in a row."""
    total = 0.0
    for layer in stack.config.layers:
        if isinstance(layer.mixer, AttentionConfig):
            total += 4 * layer.mixer.num_heads * layer.mixer.head_width * seen_pairs(layer.mixer, length)
        for shape in layer.mixer.state_shapes.values():
            total += 4 * length * torch.Size(shape).numel()
        if layer.cross is not None:
            total += 4 * layer.cross.num_heads * layer.cross.head_width * length * memory
    return total


def seen_pairs(attention: AttentionConfig, length: int) -> int:
    """How many (token, token it sees) there are in a row."""
    window = length if attention.window is None else min(attention.window, length)
    before = window * length - window * (window - 1) // 2  # each sees itself and window - 1 before it
    return before if attention.causal else 2 * before - length


# ---- cache -----------------------------------------------------------------------------------------------------------


def _writes(network: nn.Module, stacks: list[Stack]) -> bool:
    """Whether the model writes token by token."""
    has_tokens = isinstance(getattr(network, "embedding", None), TokenInput)
    return has_tokens and bool(stacks) and stacks[0].config.is_causal


def _cache(stack: Stack, context: int) -> CacheCounts:
    def numbers(attention: AttentionConfig) -> int:
        return 2 * attention.num_kv_heads * attention.head_width

    layers = stack.config.layers
    attentions = [layer.mixer for layer in layers if isinstance(layer.mixer, AttentionConfig)]
    growing = sum(numbers(attention) for attention in attentions)
    full = sum(numbers(a) * (context if a.window is None else min(a.window, context)) for a in attentions)
    memory = sum(numbers(layer.cross) for layer in layers if layer.cross is not None)
    states = sum(torch.Size(shape).numel() for layer in layers for shape in layer.mixer.state_shapes.values())

    def by_type(count: int) -> dict[str, int]:
        return {name: size * count for name, size in CACHE_BYTES.items()}

    return CacheCounts(
        bytes_per_token=by_type(growing),
        bytes_at_context={name: size + 4 * states for name, size in by_type(full).items()},
        state_bytes=4 * states,
        memory_bytes_per_token=by_type(memory),
    )
