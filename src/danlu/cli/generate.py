"""Continue a prompt with a model, printing as it is written.

MODEL is a model folder or GGUF file, an alias, a stage of the latest run, or an artifact id.

Examples:
  danlu generate product-copy "Title: linen summer dress. Material: linen."
  danlu generate ./model.gguf "Once upon a time" --raw --max-tokens 40
"""

from __future__ import annotations

import tyro

import danlu
from danlu.cli.options import Home
from danlu.core.records import GenerateOptions, Prompt


def command(
    model: tyro.conf.Positional[str],
    prompt: tyro.conf.Positional[str],
    *,
    raw: tyro.conf.FlagCreatePairsOff[bool] = False,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    home: Home = None,
) -> int:
    """Continue a prompt.

    Args:
        model: Model folder or GGUF file, alias, stage of the latest run, or artifact id.
        prompt: What to say to the model.
        raw: Continue the text as it is instead of asking through the chat template.
        max_tokens: Most tokens to write.
        temperature: 0 picks the likeliest token; 1 samples from the model's own distribution.
        top_p: Sample only from the likeliest tokens with this total probability.
        seed: Makes sampling repeatable.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    options = GenerateOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    question: Prompt = prompt if raw else [{"role": "user", "content": prompt}]
    for delta in danlu.load(model, home).stream(question, options):
        print(delta.text, end="", flush=True)
    print()
    return 0
