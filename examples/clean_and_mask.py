"""Clean rows and mask personal data; every row that goes has a reason.

python examples/clean_and_mask.py reviews.csv "Review Text"      # without arguments: four rows of its own
"""

import sys
from pathlib import Path

import pyarrow as pa

from danlu.core.events import Events
from danlu.data import pipeline
from danlu.data.prepare import PrepareConfig
from danlu.data.sources.files import read_rows, require_columns

ROWS = [
    "A soft navy dress with pockets. Mail me at ann@example.com or call 13812345678.",
    "A soft  navy dress with pockets.   Mail me at ann@example.com or call 13812345678.",
    "面料柔软，版型宽松，有事请发邮件到 zhang@corp.cn 联系我。",
    "ok",
]


def main(path: str | None = None, column: str = "text") -> None:
    table = read_rows(Path(path)).table if path else pa.table({"text": ROWS})
    require_columns(table, [column])
    ids = pa.array([str(i) for i in range(table.num_rows)])
    rows = pa.table({"id": ids, "text": table.column(column)})
    config = PrepareConfig(operators=("normalize", "quality", "exact_dedup", "near_dedup", "mask_pii"))
    outcome = pipeline.run(rows, config.steps(), Events())
    for row in outcome.table.to_pylist():
        print(f"kept {row['id']}: {row['text']}")
    for drop in outcome.dropped:
        print(f"dropped {drop.id}: {drop.reason} {drop.detail}")


if __name__ == "__main__":
    main(*sys.argv[1:])
