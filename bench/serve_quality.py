"""What a precision costs in quality: perplexity, and KL divergence to fp32, of ours and of llama.cpp on one text.

Both read the same chunks of 512 tokens and score the second half of each, as llama-perplexity does; the fp32 rows of
the two must agree, or they have not read the same. Teacher-forced, so nothing here is timed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import serve_weights as weights
from serve_peers import FOLDER, LLAMA_PERPLEXITY
from serve_systems import CPUS, ENVIRONMENT, THREADS

CHUNK = 512
NUMBER = r"([0-9.eE+-]+)"


def measure(num_chunks: int) -> dict[str, Any]:
    """Both sides, in processes of their own."""
    run = subprocess.run([*CPUS, sys.executable, __file__, str(num_chunks)], capture_output=True, text=True, check=True,
                         env=ENVIRONMENT)  # fmt: skip
    found: dict[str, Any] = {"num_chunks": num_chunks, **json.loads(run.stdout.splitlines()[-1])}
    base = FOLDER / "base.kld"
    plain = _llama(weights.GGUF["f32"], num_chunks, "--kl-divergence-base", base)
    found["llama_cpp_f32"] = {"perplexity": _number(plain, rf"Final estimate: PPL = {NUMBER}")}
    for form in ("bf16", "q8_0"):
        said = _llama(weights.GGUF[form], num_chunks, "--kl-divergence-base", base, "--kl-divergence")
        found[f"llama_cpp_{form}"] = {
            "perplexity": _number(said, rf"Mean PPL\(Q\)\s*:\s*{NUMBER}"),
            "kl_to_fp32": _number(said, rf"Mean\s+KLD:\s*{NUMBER}"),
            "same_top_share": _number(said, rf"Same top p:\s*{NUMBER}") / 100.0,
        }
    for name, facts in found.items():
        if isinstance(facts, dict):
            print(f"  {name:<20} {json.dumps(facts)}", flush=True)
    base.unlink()
    return found


def _llama(model: Path, num_chunks: int, *more: object) -> str:
    options = ["-m", model, "-f", weights.REVIEWS, "-c", CHUNK, "--chunks", num_chunks, "-t", THREADS, *more]
    run = subprocess.run([*CPUS, str(LLAMA_PERPLEXITY), *map(str, options)], capture_output=True, text=True, check=True,
                         env=ENVIRONMENT)  # fmt: skip
    return run.stdout + run.stderr


def _number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"llama-perplexity does not say {pattern!r}:\n{text[-2000:]}")
    return float(found[1])


def of_ours(num_chunks: int) -> dict[str, dict[str, float]]:
    """fp32, bf16 and int8 of the same weights."""
    import torch

    from danlu.models.executor import TorchExecutor
    from danlu.models.fastest import make_executor
    from danlu.models.load import load_model
    from danlu.models.paged import PagedCache, Segment, num_pages

    torch.set_num_threads(THREADS)
    loaded = {
        "ours_fp32": load_model(weights.PLAIN, precision="fp32"),
        "ours_bf16": load_model(weights.PLAIN, precision="bf16", is_packed=True),
        "ours_int8": load_model(weights.INT8, is_packed=True),
    }
    pages = num_pages(CHUNK)
    caches = {name: PagedCache(m.stack_config, pages, m.activation_dtype) for name, m in loaded.items()}
    models = {  # fp32 by torch is the measure; the others as they are served
        name: TorchExecutor(m, caches[name]) if name == "ours_fp32" else make_executor(m, caches[name])
        for name, m in loaded.items()
    }
    segments = [Segment(range(pages), 0, CHUNK)]
    ids = loaded["ours_fp32"].chat.tokenizer.encode(weights.REVIEWS.read_text(encoding="utf-8"))
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in models}
    count = 0
    for start in range(0, num_chunks * CHUNK, CHUNK):
        chunk = torch.tensor(ids[start : start + CHUNK])
        said = {
            name: model.run(chunk.tolist(), segments, range(CHUNK)).log_softmax(-1) for name, model in models.items()
        }
        places = torch.arange(CHUNK // 2, CHUNK - 1)
        truth = said["ours_fp32"][places]
        count += len(places)
        for name, found in said.items():
            row = found[places]
            sums[name][0] -= float(row.gather(1, chunk[places + 1][:, None]).sum())
            sums[name][1] += float((truth.exp() * (truth - row)).sum())
            sums[name][2] += float((row.argmax(-1) == truth.argmax(-1)).sum())
    return {
        name: {"perplexity": round(2.718281828459045 ** (nll / count), 4), "kl_to_fp32": round(kl / count, 6),
               "same_top_share": round(same / count, 4)}
        for name, (nll, kl, same) in sums.items()
    }  # fmt: skip


def cosines() -> dict[str, float]:
    """Of vectors of the sentence model in bf16 and int8 with those in fp32, the mean over the texts."""
    import torch

    import danlu

    texts = [json.loads(line)["text"] for line in weights.MIXED_TEXTS.read_text(encoding="utf-8").splitlines()]
    folder = str(weights.MINILM)
    truth, *others = (
        torch.as_tensor(model.embed(texts))  # pyright: ignore[reportAttributeAccessIssue]
        for model in (danlu.load(folder, precision="fp32"), danlu.load(folder, precision="bf16"),
                      danlu.load(folder, int8=True))
    )  # fmt: skip
    found = [float(torch.nn.functional.cosine_similarity(each, truth).mean()) for each in others]
    return dict(zip(("bf16", "int8"), (round(value, 5) for value in found), strict=True))


if __name__ == "__main__":
    print(json.dumps(of_ours(int(sys.argv[1]))))
