"""Continue a prompt with a model, printing as it is written.

MODEL is a model folder or GGUF file, an alias, a stage of the latest run, an artifact id, or a hub id. Chat models are
asked through their template unless --raw is given; encoder-decoders read the prompt as their source.

Examples:
  danlu generate product-copy "Title: linen summer dress. Material: linen."
  danlu generate ./model.gguf "Once upon a time" --raw --max-tokens 40
  danlu generate ./model "Name a dress." --temperature 0.8 --min-p 0.05 --n 3
  danlu generate ./summariser "A long text …" --own --max-tokens 60
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import tyro

import danlu
from danlu.cli.options import Home
from danlu.core.errors import ModelError
from danlu.core.records import GenerateOptions, Prompt, TokenLogprob

_PLAIN = GenerateOptions()


def command(
    model: tyro.conf.Positional[str],
    prompt: tyro.conf.Positional[str],
    *,
    raw: tyro.conf.FlagCreatePairsOff[bool] = False,
    own: tyro.conf.FlagCreatePairsOff[bool] = False,
    options: Annotated[GenerateOptions, tyro.conf.arg(name="")] = _PLAIN,
    home: Home = None,
) -> int:
    """Continue a prompt.

    Args:
        model: Model folder or GGUF file, alias, stage of the latest run, artifact id, or hub id.
        prompt: What to say to the model.
        raw: Continue the text as it is instead of asking through the chat template.
        own: Start from the settings of the model's makers (beams, penalties, sampling); flags change them.
        options: How to continue it.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    from danlu.models.loaded import LoadedModel

    loaded = danlu.load(model, home)
    if not isinstance(loaded, LoadedModel):
        raise ModelError("This model reads images and writes no text.", "Load a language model.")
    if own:
        given = {one.name: getattr(options, one.name) for one in fields(options)}
        options = loaded.own_options(
            **{name: value for name, value in given.items() if value != getattr(_PLAIN, name)}
        )  # fmt: skip
    question: Prompt = prompt if raw or loaded.reads_sources else [{"role": "user", "content": prompt}]
    if options.n > 1 or options.num_beams > 1:
        print("\n\n".join(answer.text for answer in loaded.generate([question], options)))
        return 0
    logprobs: list[TokenLogprob] = []
    for delta in loaded.stream(question, options):
        print(delta.text, end="", flush=True)
        logprobs += delta.logprobs
    print()
    for token in logprobs:
        likeliest = ", ".join(f"{token_id} {value:.3f}" for token_id, value in token.top)
        print(f"token {token.token_id}: {token.logprob:.3f}" + (f" (of {likeliest})" if likeliest else ""))
    return 0
