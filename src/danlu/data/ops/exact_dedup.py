"""exact_dedup: drops rows whose text repeats an earlier one, case and white space aside; names the row repeated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from danlu.data.pipeline import Applied, Operator, texts


@dataclass(frozen=True, kw_only=True)
class ExactDedupConfig:
    """Nothing to choose: the first of equal rows stays."""


def apply(table: pa.Table, config: ExactDedupConfig) -> Applied:
    """The first row of each text stays; empty texts are never duplicates."""
    first: dict[bytes, str] = {}
    details: list[str | None] = []
    for row_id, text in zip(table.column("id").to_pylist(), texts(table, "text"), strict=True):
        canonical = " ".join(text.casefold().split())
        kept = first.setdefault(hashlib.sha256(canonical.encode()).digest(), row_id) if canonical else row_id
        details.append(None if kept == row_id else kept)
    return Applied(table=table, reasons=[detail and "duplicate" for detail in details], details=details)


plugin = Operator(name="exact_dedup", version=1, scope="table", config_type=ExactDedupConfig, apply=apply)
