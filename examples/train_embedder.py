"""Make any encoder a sentence model for your own search: questions and their answers, in-batch negatives.

python examples/train_embedder.py MODEL rows.jsonl embedder/ 3
Each line of rows.jsonl: {"query": "…", "positive": "…"}, and "negatives": ["…"] if you know hard ones.
"""

import sys
from pathlib import Path

import danlu
from danlu.core.events import Events
from danlu.core.files import read_jsonl
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.train.related import encode_rows, sentence_model
from danlu.train.settings import Job
from danlu.train.stages.embed import EmbedderConfig, score, train


def main(name: str, rows_path: str, out: str, epochs: str = "1") -> None:
    source, folder = danlu.locate(name), Path(out)
    model = sentence_model(load_model(source, precision="fp32"), source=source)
    items = encode_rows(read_jsonl(Path(rows_path)), model).items
    held_out, config = items[::5], EmbedderConfig(epochs=float(epochs), rows_per_step=16)
    before = score(model, held_out, config)
    job = Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(), seed=1)
    after = train(model, [row for i, row in enumerate(items) if i % 5], held_out, config, job)["validation"]
    for key in before:
        print(f"{key}: {before[key]:.3f} → {after[key]:.3f}")
    save_model(model, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
