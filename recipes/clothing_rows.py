"""Shop reviews with 1 to 5 stars as train, validation and test rows with three labels: {text, label}.

python recipes/clothing_rows.py REVIEWS.parquet OUTPUT

Title and review are one text; 1 and 2 stars are negative, 3 neutral, 4 and 5 positive. Each text is kept once, texts
with several labels are dropped, and a product's number decides its split, so no product is in two.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

LABELS = ("", "negative", "negative", "neutral", "positive", "positive")


def main(source: str, output: str) -> None:
    path = Path(source)
    table = pq.read_table(path if path.is_file() else next(path.glob("*.parquet*")))
    found: dict[str, set[tuple[str, str]]] = {}
    for row in table.select(["Clothing ID", "Title", "Review Text", "Rating"]).to_pylist():
        text = " ".join(f"{row['Title'] or ''}\n{row['Review Text'] or ''}".split())
        if row["Review Text"]:
            found.setdefault(text, set()).add((LABELS[int(row["Rating"])], str(row["Clothing ID"])))
    counts = Counter({"rows_in": table.num_rows, "texts": len(found)})
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for text, told in sorted(found.items()):
        if len({label for label, _ in told}) == 1:
            label, product = min(told)
            splits[split_of(product)].append({"text": text, "label": label})
    for name, rows in splits.items():
        lines = (json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: digest(row["text"])))
        Path(output, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[name] = len(rows)
    Path(output, "metrics.json").write_text(json.dumps(counts), encoding="utf-8")
    print(dict(counts))


def split_of(product: str) -> str:
    """By the product's number: 10 in 100 test, 5 validation."""
    place = int(digest(product), 16) % 100
    return "test" if place < 10 else "validation" if place < 15 else "train"


def digest(text: str) -> str:
    """A number that is the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
