"""Generation: the plain way to write and to score that everything else is held to.

A batch starts together and ends together. How one answer grows is in writing.py, how a token is picked in sampling.py;
other ways to write have files of their own: beam.py, lookup.py, contrastive.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from danlu.core.errors import ModelError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, Message, OnAdvance, Prompt, Score
from danlu.models import beam
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.contrastive import write_contrastive
from danlu.models.decoding import Rows
from danlu.models.heads.lm import LMHead
from danlu.models.lookup import write_with_lookup
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder, Network
from danlu.models.sampling import pick_tokens
from danlu.models.writing import Writing

REFERENCE_BATCH = 16
"""Rows written together."""

AnyPrompt = Prompt | Sequence[int]
"""A text, a conversation, or token ids."""


def generate(
    model: Model, prompts: Sequence[AnyPrompt], options: GenerateOptions, on_advance: OnAdvance | None = None
) -> list[Completion]:
    """Answers in the order of ``prompts``, ``options.n`` of each. ``on_advance`` counts prompts.

    Raises ModelError for a model that does not write, RequestError for a prompt that cannot be answered.
    """
    writings = [start(model, prompt, options) for prompt in prompts]
    together = max(1, REFERENCE_BATCH // max(options.n, options.num_beams))
    answers: list[Completion] = []
    for first in range(0, len(writings), together):
        batch = writings[first : first + together]
        answers += [answer for found in _answer(model, batch, options) for answer in found]
        if on_advance is not None:
            on_advance(len(batch))
    return answers


def _answer(model: Model, batch: Sequence[Writing], options: GenerateOptions) -> list[list[Completion]]:
    if options.num_beams > 1:
        return beam.search(model, batch)
    samples = [[writing, *(writing.again(sample) for sample in range(1, options.n))] for writing in batch]
    for _ in write(model, samples):
        pass
    return [[writing.completion() for writing in group] for group in samples]


def stream(model: Model, prompt: AnyPrompt, options: GenerateOptions) -> Iterator[Delta]:
    """The answer piece by piece."""
    if options.num_beams > 1 or options.n > 1:
        name = "num_beams" if options.num_beams > 1 else "n"
        raise RequestError(
            f"{name} is {getattr(options, name)}, but a stream has one answer, told as it is written.",
            "Use generate.", param=name,
        )  # fmt: skip
    for delta in write(model, [[start(model, prompt, options)]]):
        if delta.text or delta.finish_reason or delta.logprobs:
            yield delta


def start(model: Model, prompt: AnyPrompt, options: GenerateOptions, *, shown: Collection[str] = ()) -> Writing:
    """The answer to a prompt, nothing written yet. ``shown`` are special tokens that its text has all the same."""
    check_writes(model)
    ids = prompt_ids(model, prompt)
    tokenizer = model.chat.tokenizer.target if model.has_tokenizer else None
    context, network = model.config.context_length, model.network
    if not isinstance(network, EncoderDecoder):
        return Writing(ids, options, tokenizer, context, defaults=model.generation, shown=shown)
    longest = network.encoder.stack.config.context_length
    if len(ids) > longest:
        raise RequestError(
            f"The source has {len(ids)} tokens; the model reads {longest}.", "Shorten it.",
            code="context_length_exceeded",
        )  # fmt: skip
    return Writing([start_id(model)], options, tokenizer, context, defaults=model.generation, source_ids=ids)


def check_writes(model: Model) -> None:
    """Raises ModelError for a model that writes no text."""
    network = model.network
    if not (isinstance(network, Network) and isinstance(network.head, LMHead)):
        raise ModelError(f"This model writes no text: it has {head_name(model)}.", "Load a language model.")
    if not network.stack.config.is_causal:
        raise ModelError("This model writes no text: it fills in hidden words.", "Use fill_mask, or load a decoder.")


def head_name(model: Model) -> str:
    """What the model answers with, in words."""
    head = model.network.head
    return "no head" if head is None else f"a head of kind {type(head).__name__.removesuffix('Head')}"


def start_id(model: Model) -> int:
    """The token before an encoder-decoder's answers."""
    if model.generation.start_id is None:
        raise ModelError(
            "The model does not say which token its answers start with.",
            "Put decoder_start_token_id into generation_config.json.",
        )
    return model.generation.start_id


def prompt_ids(model: Model, prompt: AnyPrompt) -> list[int]:
    """Ids of whatever a model reads first: a prompt as it stands, or a source in the tokenizer's own frame."""
    if isinstance(prompt, str):
        if isinstance(model.network, EncoderDecoder):
            return model.chat.tokenizer.encode_with_specials(prompt)[0]
        return model.chat.prompt_ids(prompt)
    if prompt and not isinstance(prompt[0], int):
        return model.chat.prompt_ids(cast("Sequence[Message]", prompt))
    ids, size = list(cast("Sequence[int]", prompt)), _source_vocabulary(model)
    wrong = next((i for i in ids if not 0 <= i < size), None)
    if wrong is not None:
        raise RequestError(f"Token id {wrong} is not of this model.", f"Ids are 0 to {size - 1}.", param="prompt")
    return ids


def _source_vocabulary(model: Model) -> int:
    return (model.config.encoder or model.config.tower).vocabulary_size


def write(model: Model, samples: Sequence[Sequence[Writing]]) -> Iterator[Delta]:
    """Write all to the end, in step; the samples of one prompt read it once. Yields the deltas of every row."""
    options = samples[0][0].options
    if options.lookup_tokens or options.penalty_alpha:
        one_by_one = write_with_lookup if options.lookup_tokens else write_contrastive
        for writing in (writing for group in samples for writing in group):
            yield from one_by_one(model, writing)
        return
    writings = [writing for group in samples for writing in group]
    rows = Rows(model, [group[0] for group in samples], copies=max(len(group) for group in samples))
    if len(writings) > len(samples):
        rows.keep([number for number, group in enumerate(samples) for _ in group])
    while True:
        tokens = pick_tokens(rows.logits(), writings)
        for writing, token in zip(writings, tokens, strict=True):
            if writing.finish_reason is None:
                yield writing.push(token)
        if all(writing.finish_reason for writing in writings):
            return
        rows.read([[token] for token in tokens])


def score(model: Model, prompts: Sequence[AnyPrompt], continuations: Sequence[str]) -> list[Score]:
    """Log-likelihood in nats of each continuation after its prompt, or of each target of a source.

    Tokens of the prompt are not counted. The continuation's tokens are made apart from the prompt's, as they would be
    written.
    """
    check_writes(model)
    scores: list[Score] = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        before, answer = prompt_ids(model, prompt), _continuation_ids(model, prompt, continuation)
        if not before or not answer:
            raise RequestError("Prompt and continuation must both have at least one token.", "Send some text.")
        with torch.inference_mode():
            logits = _answer_logits(model, before, answer).float()  # (M, V)
            targets = torch.tensor(answer, device=model.device)
            logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
            greedy = bool((logits.argmax(dim=-1) == targets).all())
        values = tuple(logprobs.tolist())
        scores.append(Score(logprob=sum(values), num_tokens=len(values), is_greedy=greedy, token_logprobs=values))
    return scores


def _continuation_ids(model: Model, prompt: AnyPrompt, continuation: str) -> list[int]:
    tokenizer = model.chat.tokenizer
    if isinstance(prompt, str) and not isinstance(model.network, EncoderDecoder):
        return tokenizer.encode_rest(continuation)
    return tokenizer.target.encode(continuation)


def _answer_logits(model: Model, before: list[int], answer: list[int]) -> Tensor:
    """What the model says at each place of an answer: (M, V)."""
    network, device = model.network, model.device
    memory = None
    if isinstance(network, EncoderDecoder):
        memory = network.encode(torch.tensor(before, device=device), [len(before)])
        before = [start_id(model)]
    ids = [*before, *answer]
    if len(ids) > model.config.context_length:
        raise RequestError(
            f"Prompt and continuation have {len(ids)} tokens; the context is {model.config.context_length}.",
            "Shorten them.",
            code="context_length_exceeded",
        )
    attend = PackedAttend([len(ids)], device, memory=memory)
    hidden = network(torch.tensor(ids, device=device), row_positions([len(ids)]).to(device), attend)
    return network.logits(hidden[len(before) - 1 : -1])
