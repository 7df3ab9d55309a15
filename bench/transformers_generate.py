"""Items a second of transformers' ``generate``, one prompt at a time, on the weights and prompts of an evaluation.

    python bench/transformers_generate.py MODEL_FOLDER EVALUATION_FOLDER OUT_FOLDER [--items 8]

Both number types are tried and the faster one counts. ``speedup_vs_transformers`` is the evaluation's own items a
second over that. The prompts are spread evenly over the evaluation's; answers end at the end token or at as many
tokens as the longest answer of the evaluation could have. Without transformers the ratio is null, and the message
says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: the speed-up is not measured (pip install 'danlu[dev]' to measure it)")
        metrics = {"speedup_vs_transformers": None}
    else:
        metrics = measure(arguments.model, arguments.evaluation, arguments.items, arguments.max_tokens)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")


def measure(folder: Path, evaluation: Path, num_items: int, max_tokens: int) -> dict[str, object]:
    """Items a second of both number types, and the ratio of ours to the better one."""
    import torch
    import transformers

    ours = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    samples = [json.loads(line) for line in (evaluation / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [samples[i * len(samples) // num_items] for i in range(num_items)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template(s["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        for s in chosen
    ]
    rates: dict[str, float] = {}
    same = 0
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        options = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        model.generate(**prompts[0], **{**options, "max_new_tokens": 4})
        started = time.perf_counter()
        answers = [model.generate(**prompt, **options) for prompt in prompts]
        name = str(dtype).removeprefix("torch.")
        rates[name] = len(prompts) / (time.perf_counter() - started)
        print(f"transformers {name}: {rates[name]:.2f} items/s")
        if dtype is torch.bfloat16:
            continue
        for sample, prompt, answer in zip(chosen, prompts, answers, strict=True):
            text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            same += text.strip() == sample["output"]
    return {
        "speedup_vs_transformers": round(ours["items_per_s"] / max(rates.values()), 2),
        "ours_items_per_s": ours["items_per_s"],
        "transformers_items_per_s": {name: round(rate, 4) for name, rate in rates.items()},
        "transformers_version": transformers.__version__,
        "items": num_items,
        "answers_equal_to_fp32": same,
    }


if __name__ == "__main__":
    main()
