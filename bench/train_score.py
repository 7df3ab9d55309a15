"""The one judge: loss on held-out rows in fp32, computed by Transformers for every system's weights.

    .bench/train/venv/bin/python bench/train_score.py SETTINGS.json

``kind`` lora: ``folders`` hold adapters as PEFT saves them; nats a supervised token. ``kind`` pretrain: model folders;
nats a token and bits per UTF-8 byte. Knows no danlu.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from train_clock import Job, read_job
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def main() -> int:
    job = read_job()
    score = {"lora": lora, "pretrain": pretrain}[job["kind"]]
    job.finish(scores={folder: score(job, folder) for folder in job["folders"]})
    return 0


def lora(job: Job, folder: str) -> dict[str, float]:
    """Row after row, so that nothing is padded."""
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))["validation"][: job["num_rows"]]
    total, count = 0.0, 0
    for row in rows:
        ids, answer = torch.tensor(row["ids"]), torch.tensor(row["is_answer"])[1:]
        losses = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total, count = total + float(losses[answer].double().sum()), count + int(answer.sum())
    return {"loss": total / count, "tokens": count}


def pretrain(job: Job, folder: str) -> dict[str, float]:
    """Whole rows from the start of the held-out file."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sizes = torch.tensor(json.loads(Path(job["corpus"]).read_text(encoding="utf-8"))["bytes_of_token"])
    ids = torch.from_file(job["tokens"], dtype=torch.uint16, size=Path(job["tokens"]).stat().st_size // 2).long()
    row, total, count, size_bytes = job["row_tokens"], 0.0, 0, 0
    for start in range(0, job["num_rows"] * row, 8 * row):
        rows = ids[start : start + 8 * row].view(-1, row)
        logits = model(rows).logits[:, :-1]
        total += float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").double())
        count, size_bytes = count + rows[:, 1:].numel(), size_bytes + int(sizes[rows[:, 1:]].sum())
    return {"loss": total / count, "bits_per_byte": total / math.log(2) / size_bytes, "tokens": count}


if __name__ == "__main__":
    sys.exit(main())
