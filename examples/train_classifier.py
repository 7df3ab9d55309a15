"""Teach BERT, or any other body, your labels: AdamW at 2e-5 for 3 epochs; then label what comes.

python examples/train_classifier.py MODEL rows.jsonl classifier/ "The zip broke on the first day."
Each line of rows.jsonl: {"text": "…", "label": "…"}; every fifth row is held out.
"""

import sys
from pathlib import Path

import danlu
from danlu.core.events import Events
from danlu.core.files import read_jsonl
from danlu.models.encode import classify
from danlu.models.load import load_model
from danlu.models.rehead import with_head
from danlu.models.save import save_model
from danlu.train.labelled import encode_rows, labels_of
from danlu.train.settings import Job
from danlu.train.stages.classify import ClassifierConfig, train


def main(name: str, rows_path: str, out: str, *texts: str) -> None:
    rows, source, folder = list(read_jsonl(Path(rows_path))), danlu.locate(name), Path(out)
    model = with_head(load_model(source, precision="fp32"), labels_of(rows), seed=1, source=source)
    items = encode_rows(rows, model).items
    job = Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(), seed=1)
    train(model, [row for i, row in enumerate(items) if i % 5], items[::5], ClassifierConfig(), job)
    for line in read_jsonl(folder / "log.jsonl"):
        print(", ".join(f"{key} {value:.4g}" for key, value in line.items() if "loss" in key or "acc" in key))
    save_model(model, folder)
    for text, (best, *_) in zip(texts, classify(model, texts), strict=True):
        print(f"{best.probability:.2f} {best.label}: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
