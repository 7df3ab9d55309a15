"""label_attributes: notes which material, size, fit, colour and occasion a text mentions (text/lexicon)."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from danlu.data.pipeline import Applied, Operator, keep_all, texts
from danlu.text import lexicon

LABELS = pa.struct([pa.field(key, pa.list_(pa.string())) for key in lexicon.KEYS])
"""The column ``labels``: for each attribute key the canonical values in order of first mention."""


@dataclass(frozen=True, kw_only=True)
class LabelAttributesConfig:
    """Nothing to choose: the lexicon decides."""


def apply(table: pa.Table, config: LabelAttributesConfig) -> Applied:
    """Add the column ``labels``; drops nothing."""
    found = [{key: labels.get(key, []) for key in lexicon.KEYS} for labels in map(lexicon.find, texts(table, "text"))]
    return keep_all(table.append_column("labels", pa.array(found, LABELS)))


plugin = Operator(name="label_attributes", version=1, scope="rows", config_type=LabelAttributesConfig, apply=apply)
