"""mask_pii: replaces personal data in place (text/pii) and notes how many of each kind in the column ``masked``."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from danlu.data.pipeline import Applied, Operator, keep_all, set_text
from danlu.text.pii import mask


@dataclass(frozen=True, kw_only=True)
class MaskPiiConfig:
    """Where personal data may stand."""

    columns: tuple[str, ...] = ("text", "title")
    """Text columns to mask; those the table lacks are passed over."""


def apply(table: pa.Table, config: MaskPiiConfig) -> Applied:
    """Mask the configured columns; ``masked`` lists the kind of every finding, e.g. ["EMAIL", "EMAIL", "PHONE"]."""
    findings: list[list[str]] = [[] for _ in range(table.num_rows)]
    for name in config.columns:
        if name not in table.column_names:
            continue
        values: list[str | None] = []
        for row, value in enumerate(table.column(name).to_pylist()):
            masked = None if value is None else mask(value)
            values.append(masked and masked.text)
            for kind, count in (masked.counts if masked else {}).items():
                findings[row] += [kind] * count
        table = set_text(table, name, values)
    return keep_all(table.append_column("masked", pa.array(findings, pa.list_(pa.string()))))


plugin = Operator(name="mask_pii", version=1, scope="rows", config_type=MaskPiiConfig, apply=apply)
