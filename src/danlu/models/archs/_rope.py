"""Rotary positions out of config.json, in its old form (rope_theta, rope_scaling) and its new one (rope_parameters)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs._keys import Keys
from danlu.models.positions import RopeScaling, RotaryConfig

_KINDS = {
    "default": "none", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn", "llama3": "llama3",
    "longrope": "longrope", "su": "longrope",
}  # fmt: skip


def read_rope(keys: Keys, head_width: int, *, base: float = 10_000.0) -> RotaryConfig:
    """The one kind of rotary positions of a stack."""
    whole = keys.get("rope_parameters") or {}
    old = keys.get("rope_scaling") or {}
    theta = keys.number("rope_theta", float(whole.get("rope_theta", base)))
    share = keys.number("partial_rotary_factor", float(whole.get("partial_rotary_factor", 1.0)))
    return rope_of({**old, **whole}, head_width, theta, share, keys)


def rope_of(theirs: Mapping[str, Any], head_width: int, base: float, share: float, keys: Keys) -> RotaryConfig:
    """One entry of rope_parameters, or of rope_scaling; ``share`` of each head is turned."""
    named = Keys(theirs, "config.json: rope_parameters")
    named.harmless("rope_theta", "partial_rotary_factor")
    kind = _KINDS.get(str(theirs.get("rope_type", theirs.get("type", "default"))))
    named.harmless("rope_type", "type")
    width = int(head_width * share)
    context = keys.integer("max_position_embeddings", 2048)
    if kind is None:
        raise ModelError(
            f"config.json: rope_type is {theirs.get('rope_type', theirs.get('type'))!r}.",
            f"Known: {', '.join(_KINDS)}.",
        )
    if kind == "none":
        named.harmless("factor", "original_max_position_embeddings")
        named.done()
        return RotaryConfig(width=width, base=base)
    scaling = _scaling(kind, named, keys, context)
    named.done()
    return RotaryConfig(width=width, base=base, scaling=scaling)


def _scaling(kind: str, named: Keys, keys: Keys, context: int) -> RopeScaling:
    outer = keys.get("original_max_position_embeddings")
    original = named.integer("original_max_position_embeddings", outer or context)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=named.number("factor"))
    if kind == "dynamic":
        return RopeScaling(kind="dynamic", factor=named.number("factor"), original_length=context)
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=named.number("factor"),
            original_length=original,
            low_factor=named.number("low_freq_factor"),
            high_factor=named.number("high_freq_factor"),
        )
    if kind == "yarn":
        factor = named.number("factor")
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_length=original,
            beta_fast=named.number("beta_fast", 32.0),
            beta_slow=named.number("beta_slow", 1.0),
            truncate=named.flag("truncate", True),
            attention_factor=_yarn_attention(named, factor),
        )
    factor = context / original if outer else named.number("factor", context / original)
    named.harmless("factor")
    grown = 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_length=original,
        attention_factor=named.number("attention_factor", grown),
        short_factors=tuple(float(x) for x in named.get("short_factor", ())),
        long_factors=tuple(float(x) for x in named.get("long_factor", ())),
    )


def _yarn_attention(named: Keys, factor: float) -> float:
    """How much scores grow with the stretch (Peng et al. 2023, equation 22), as configs may override it."""

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0

    scale, scale_all = named.get("mscale"), named.get("mscale_all_dim")
    default = grown(scale) / grown(scale_all) if scale and scale_all else grown(1.0)
    return named.number("attention_factor", default)
