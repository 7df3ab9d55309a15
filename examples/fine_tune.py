"""Fine-tune a model with LoRA on your conversations; the adapter loads in PEFT and vLLM as it is.

python examples/fine_tune.py MODEL rows.jsonl adapter/ 50
Each line of rows.jsonl: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
"""

import sys
from pathlib import Path

import danlu
from danlu.core.events import Events
from danlu.core.files import read_jsonl
from danlu.models.load import load_model
from danlu.train.adapter import save_adapter
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune


def main(name: str, rows: str, out: str, steps: str = "50") -> None:
    model = load_model(danlu.locate(name))
    config = SftConfig(steps=int(steps))
    encoded = encode_rows(read_jsonl(Path(rows)), model.chat, config.max_row_tokens).encoded
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(), seed=1)
    numbers = finetune(model, encoded, [], config, job)
    save_adapter(model, folder, config.lora, base=name)
    print(f"loss {numbers['first_loss']:.2f} → {numbers['last_loss']:.2f}, {numbers['trainable_share']:.2%} trained")


if __name__ == "__main__":
    main(*sys.argv[1:])
