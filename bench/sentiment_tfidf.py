"""TF-IDF and logistic regression on rows with labels, with scikit-learn; prints JSON.

    .bench/sentiment/venv/bin/python bench/sentiment_tfidf.py ROWS char accuracy

ROWS has train, validation and test.jsonl. N-grams of characters or words, the strength of the penalty and the weights
of labels are chosen on the validation rows, by accuracy or macro_f1.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

STRENGTHS = (0.5, 1.0, 4.0, 10.0)


def main(folder: str, unit: str, judge: str) -> None:
    texts, labels = {}, {}
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in Path(folder, f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        texts[name], labels[name] = [row["text"] for row in rows], [row["label"] for row in rows]
    found: list[dict[str, Any]] = []
    for longest in (2, 3) if unit == "char" else (1, 2):
        reader = TfidfVectorizer(analyzer=unit, ngram_range=(1, longest), min_df=2, sublinear_tf=True)
        known = reader.fit_transform(texts["train"])
        seen = {name: reader.transform(texts[name]) for name in ("validation", "test")}
        for strength, weights in itertools.product(STRENGTHS, (None, "balanced")):
            model = LogisticRegression(C=strength, class_weight=weights, max_iter=1000).fit(known, labels["train"])
            told = {name: scores(labels[name], model.predict(seen[name])) for name in seen}
            found.append({"longest": longest, "C": strength, "class_weight": weights, **told})
    print(json.dumps(max(found, key=lambda one: one["validation"][judge])))


def scores(gold: list[str], guessed: Any) -> dict[str, float]:
    return {"accuracy": accuracy_score(gold, guessed), "macro_f1": f1_score(gold, guessed, average="macro")}


if __name__ == "__main__":
    main(*sys.argv[1:])
